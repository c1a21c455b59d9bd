"""Stage zero: demonstrations in LIBERO's HDF5 layout, from where `demos.source` in params.yaml says.

    python -m stages.demos                            # every suite of params.yaml
    python -m stages.demos --suite libero_spatial     # one of them
    python -m stages.demos --list                     # the tasks, and what is there already

scripted  an expert that sees the simulator's state records them here (libero_spatial).
path      the files below demos.path are checked and linked; nothing is copied or changed.
official  LIBERO's own are downloaded into the Hugging Face cache, checked and linked.

Writes data/demos/<suite>/<task>_demo.hdf5 and index.json (what is there, what is left out and why), and beside the
directory <suite>.provenance.json. Stopped at any time and started again it goes on with the episodes that are left,
which it keeps in .scratch/demos/, and ends in the same files.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config import Params
from pipeline.errors import DataError
from pipeline.files import exclusive, write_atomic
from pipeline.libero.demos import collect, download
from pipeline.libero.demos.read import Demo, Quarantined, cameras_of, demo_file, recorded_with, scan
from pipeline.libero.suites import Task, tasks
from pipeline.provenance import provenance
from stages import cli

INDEX = "index.json"


def main(argv: list[str] | None = None) -> None:
    """Make the demonstrations that params.yaml asks for."""
    parser = cli.parser(__doc__)
    parser.add_argument("--suite", help="only this one (default: all of data.suites)")
    parser.add_argument("--list", action="store_true", help="show the tasks and what is there, and stop")
    parser.add_argument("--out", default="data/demos", help="directory to write (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/demos", help="unfinished work (default: %(default)s)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    suites = (args.suite,) if args.suite else params.data.suites
    for suite in suites:
        chosen = tasks(suite, params.data.tasks.get(suite))
        if args.list:
            show(Path(args.out), suite, chosen)
        else:
            with exclusive(Path(args.scratch) / f"{suite}.lock", "recording"):
                make(params, suite, chosen, Path(args.out), Path(args.scratch))


def make(params: Params, suite: str, chosen: Sequence[Task], out: Path, scratch: Path) -> None:
    """Bring the demonstrations of one suite into `<out>/<suite>`, whole or not at all."""
    fingerprint = collect.fingerprint(suite, chosen, params.sim, params.demos)
    if params.demos.source == "scripted" and is_current(out, suite, chosen, fingerprint):
        print(f"{out / suite}: up to date (fingerprint {fingerprint})")
        return
    refuse_strange(out / suite)
    work = scratch.resolve() / suite / fingerprint
    took: dict[str, Any] = {}
    if params.demos.source == "scripted":
        took = collect.collect(chosen, params.sim, params.demos, params.compute, work)
    else:
        link(params, suite, chosen, work, out / suite)
    demos, quarantine = scan(work, suite, chosen, cameras_of(params.demos))
    refuse_empty(chosen, demos, quarantine)
    index = {"fingerprint": fingerprint, **describe(params, suite, chosen, demos, quarantine)}
    (work / suite / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    publish(work / suite, out / suite)
    record = {"demos": asdict(params.demos), "sim": asdict(params.sim), "took": took}
    write_atomic(out / f"{suite}.provenance.json", json.dumps(record | {"provenance": provenance()}, indent=1) + "\n")
    shutil.rmtree(work.parent)
    print(headline(index, took))
    print(f"files, and what was left out: {out / suite}")


def is_current(out: Path, suite: str, chosen: Sequence[Task], fingerprint: str) -> bool:
    """Return whether the demonstrations of this very work are in place, wherever they come from (DVC's cache, say)."""
    try:
        index = json.loads((out / suite / INDEX).read_text())
    except (OSError, ValueError):
        return False
    return index.get("fingerprint") == fingerprint and all(demo_file(out, task).is_file() for task in chosen)


def refuse_strange(target: Path) -> None:
    """Raise DataError for a directory that this stage did not write: it is about to be replaced."""
    if target.is_dir() and any(target.iterdir()) and not (target / INDEX).is_file():
        raise DataError(
            f"{target}: holds files that this stage did not write (there is no {INDEX}). Move them elsewhere, and name "
            "that directory in demos.path (demos.source: path) if they are demonstrations"
        )


def link(params: Params, suite: str, chosen: Sequence[Task], work: Path, target: Path) -> None:
    """Put symbolic links to the files of the other two sources where scripted ones would lie.

    Symbolic and not hard links: DVC makes what it caches read-only, and a hard link would do that to your own file.

    Raises:
        DataError: a file is missing, or lies in `target`, which is about to be replaced.
    """
    for task in chosen:
        if params.demos.source == "official":
            source = download.download(task)
        else:
            source = demo_file(Path(params.demos.path or "").expanduser().resolve(), task)
            if not source.is_file():
                raise DataError(
                    f"{source}: not there. demos.path must name a directory that holds {suite}/<task>_demo.hdf5 for "
                    f"each task ({len(chosen)} of {suite} are asked for; data.tasks chooses them)"
                )
        if source.resolve().is_relative_to(target.resolve()):
            raise DataError(
                f"{source}: lies in {target}, which this stage is about to replace. Move the files elsewhere and name "
                "that directory in demos.path"
            )
        name = demo_file(work, task)
        name.parent.mkdir(parents=True, exist_ok=True)
        name.unlink(missing_ok=True)
        name.symlink_to(source)


def refuse_empty(chosen: Sequence[Task], demos: Sequence[Demo], quarantine: Sequence[Quarantined]) -> None:
    """Raise DataError if a task is left with no demonstration."""
    for task in chosen:
        if not any(demo.task == task for demo in demos):
            reasons = [str(q) for q in quarantine if task.name in q.file.name][:3]
            raise DataError(
                f"{task.suite} task {task.id} has no usable demonstration: {'; '.join(reasons)}. "
                "Download or record it again, or leave the task out of data.tasks"
            )


def describe(
    params: Params, suite: str, chosen: Sequence[Task], demos: Sequence[Demo], quarantine: Sequence[Quarantined]
) -> dict[str, Any]:
    """Return the content of index.json: the same for the same files."""
    own = {task: [demo for demo in demos if demo.task == task] for task in chosen}
    return {
        "suite": suite,
        "source": params.demos.source,
        "recorded_with": recorded_with(demos[0].file),
        "demos": len(demos),
        "frames": sum(demo.length for demo in demos),
        "tasks": [
            {
                "id": task.id,
                "name": task.name,
                "language": task.language,
                "demos": len(own[task]),
                "asked": params.demos.episodes if params.demos.source == "scripted" else None,
                "frames": sum(demo.length for demo in own[task]),
            }
            for task in chosen
        ],
        "quarantine": [{"file": q.file.name, "demo": q.demo, "reason": q.reason} for q in quarantine],
    }


def publish(ready: Path, target: Path) -> None:
    """Move a finished directory into place. What was there before goes only then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = ready.with_name("replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        shutil.move(target, old)
    shutil.move(ready, target)


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


def show(out: Path, suite: str, chosen: Sequence[Task]) -> None:
    """Print the tasks and the demonstrations that are there."""
    print(suite)
    for task in chosen:
        there = "none yet"
        if demo_file(out, task).exists():
            demos, quarantine = scan(out, suite, [task])
            there = f"{len(demos)} demonstrations, {sum(d.length for d in demos)} frames"
            there += f", {len(quarantine)} left out" if quarantine else ""
        print(f"{task.id:3d}  {task.language}\n     {there}")


if __name__ == "__main__":
    cli.run(main)
