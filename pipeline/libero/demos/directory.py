"""The directory of a suite's demonstrations: what its index.json says, and how it takes the place of an older one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.libero.demos.layout import GUIDE, INDEX, demo_file
from pipeline.libero.demos.read import Demo, Quarantined, recorded_with, scan
from pipeline.libero.settings import Demos
from pipeline.libero.suites import Task


def is_current(directory: Path, chosen: Sequence[Task], fingerprint: str) -> bool:
    """Return whether the demonstrations of this very work are in place, wherever they come from (DVC's cache, say)."""
    try:
        index = json.loads((directory / INDEX).read_text())
    except (OSError, ValueError):
        return False
    return index.get("fingerprint") == fingerprint and all(
        demo_file(directory.parent, task).is_file() for task in chosen
    )


def refuse_foreign(directory: Path) -> None:
    """Raise DataError for a directory that the stage did not write: it is about to be replaced."""
    if directory.is_dir() and any(directory.iterdir()) and not (directory / INDEX).is_file():
        raise DataError(
            f"{directory}: holds files that this stage did not write (there is no {INDEX}). Move them elsewhere, and "
            "name that directory in demos.path (demos.source: path) if they are demonstrations"
        )


def refuse_empty(chosen: Sequence[Task], demos: Sequence[Demo], quarantine: Sequence[Quarantined]) -> None:
    """Raise DataError if a task is left with no demonstration."""
    for task in chosen:
        if not any(demo.task == task for demo in demos):
            reasons = [str(q) for q in quarantine if q.file.name == demo_file(q.file, task).name][:3]
            raise DataError(
                f"{task.suite} task {task.id} has no usable demonstration: {'; '.join(reasons)}. "
                f"Put that right, or leave the task out of data.tasks. {GUIDE}"
            )


def describe(
    settings: Demos, suite: str, chosen: Sequence[Task], demos: Sequence[Demo], quarantine: Sequence[Quarantined]
) -> dict[str, Any]:
    """Return the content of index.json: the same for the same files."""
    own = {task: [demo for demo in demos if demo.task == task] for task in chosen}
    return {
        "suite": suite,
        "source": settings.source,
        "recorded_with": recorded_with(demos[0].file),
        "demos": len(demos),
        "frames": sum(demo.length for demo in demos),
        "obs_shift": {str(n): sum(demo.obs_shift == n for demo in demos) for n in (1, 0, None)},  # as measured
        "tasks": [
            {
                "id": task.id,
                "name": task.name,
                "language": task.language,
                "demos": len(own[task]),
                "asked": settings.episodes if settings.source == "scripted" else None,
                "frames": sum(demo.length for demo in own[task]),
            }
            for task in chosen
        ],
        "quarantine": [{"file": q.file.name, "demo": q.demo, "reason": q.reason} for q in quarantine],
    }


def headline(index: dict[str, Any], took: dict[str, Any]) -> str:
    """Return the summary a person wants to see."""
    lines = [f"{index['suite']} ({index['source']}): {index['demos']} demonstrations, {index['frames']} frames"]
    if took.get("episodes"):
        lines.append(
            f"recorded {took['solved']} of {took['episodes']} episodes in {took['seconds']:.0f} s; "
            f"{took['solved_first_attempt']} at the first attempt"
        )
    for task in index["tasks"]:
        if task["asked"] and task["demos"] < task["asked"]:
            lines.append(f"task {task['id']}: {task['demos']} demonstrations, {task['asked']} were asked for")
    lines += [f"left out {q['file']} {q['demo'] or ''}: {q['reason']}" for q in index["quarantine"]]
    return "\n".join(lines)


def listing(directory: Path, chosen: Sequence[Task]) -> str:
    """Return the tasks, and the demonstrations that are there."""
    lines = [directory.name]
    for task in chosen:
        there = "none yet"
        if demo_file(directory.parent, task).exists():
            demos, quarantine = scan(directory.parent, directory.name, [task])
            there = f"{len(demos)} demonstrations, {sum(d.length for d in demos)} frames"
            there += f", {len(quarantine)} left out" if quarantine else ""
        lines.append(f"{task.id:3d}  {task.language}\n     {task.name}: {there}")
    return "\n".join(lines)
