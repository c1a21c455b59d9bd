"""Data of your own, checked and linked to where LIBERO's demonstrations would lie. Nothing is copied or changed."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.data.lerobot import LeRobotDataset
from pipeline.data.own import DATA, GUIDE, DataSet, Demo, Task, choose
from pipeline.errors import DataError
from pipeline.libero.demos.layout import INDEX
from pipeline.libero.demos.read import Quarantined
from pipeline.libero.settings import Demos, Keys


def place(settings: Demos, suite: str, ids: Sequence[int] | None, work: Path, directory: Path) -> dict[str, Any]:
    """Check the data set in `demos.path`; link it below `work`, with an index.json, whose content is returned.

    Args:
        ids: of the tasks to use; None for all.
        directory: that is about to be replaced by `work`.

    Raises:
        DataError: it is not there, cannot be used, or a task has no usable demonstration.
    """
    keys, source = _asked(settings)
    if source.is_relative_to(directory.resolve()):
        raise DataError(
            f"{source}: lies in {directory}, which this stage is about to replace. Move the data elsewhere and name "
            "that directory in demos.path"
        )
    data = DataSet(suite, source, keys)
    demos, left_out = data.scan()
    chosen = choose(data.tasks(), ids)
    for task in chosen:
        if not any(demo.task == task for demo in demos):
            reasons = "; ".join(str(entry) for entry in left_out[:3])
            raise DataError(f"{suite} task {task.id} ({task.language}) has no usable demonstration: {reasons}. {GUIDE}")
    shutil.rmtree(work, ignore_errors=True)
    link(source, work / DATA, keys)
    index = _index(data, chosen, [demo for demo in demos if demo.task in chosen], left_out)
    (work / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return index


def listing(settings: Demos, suite: str) -> str:
    """Return the tasks that the data set in `demos.path` has, and how many demonstrations. Raises as `place` does."""
    keys, source = _asked(settings)
    data = DataSet(suite, source, keys)
    demos, left_out = data.scan()
    lines = [f"{suite}: {source}"]
    for task in data.tasks():
        mine = [demo for demo in demos if demo.task == task]
        lines.append(f"{task.id:3d}  {task.language}: {len(mine)} demonstrations, {sum(d.length for d in mine)} frames")
    return "\n".join([*lines, *(f"left out {entry}" for entry in left_out)])


def link(source: Path, target: Path, keys: Keys) -> None:
    """Make a symbolic link for each file, but for pictures of cameras that `keys` does not name."""
    cameras = {*keys.cameras.values()}
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        pictures = relative.parts[0] in ("videos", "images")
        if not path.is_file() or (pictures and not cameras & {*relative.parts}):
            continue
        name = target / relative
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(path.resolve())


def _asked(settings: Demos) -> tuple[Keys, Path]:
    source = Path(settings.path or "").expanduser().resolve()
    if settings.keys is None or not settings.path:
        raise DataError("demos.source is own, which takes demos.path and demos.keys. Set both")
    if not source.is_dir():
        what = "is a file" if source.is_file() else "is not there"
        raise DataError(f"demos.path {source} {what}; it must name the directory of a data set. {GUIDE}")
    return settings.keys, source


def _index(
    data: DataSet, chosen: Sequence[Task], demos: Sequence[Demo], left_out: Sequence[Quarantined]
) -> dict[str, Any]:
    own = {task: [demo for demo in demos if demo.task == task] for task in chosen}
    return {
        "suite": data.suite,
        "source": "own",
        "own": {
            "format": "lerobot" if isinstance(data.reader, LeRobotDataset) else "hdf5",
            "keys": asdict(data.keys),
            "fps": data.reader.fps,
            "widths": dict(demos[0].widths),
            "frame_sizes": dict(demos[0].sizes),
        },
        "demos": len(demos),
        "frames": sum(demo.length for demo in demos),
        "tasks": [
            {
                "id": task.id,
                "name": task.name,
                "language": task.language,
                "demos": len(own[task]),
                "asked": None,
                "frames": sum(demo.length for demo in own[task]),
            }
            for task in chosen
        ],
        "quarantine": [
            {"file": q.file.relative_to(data.root).as_posix(), "demo": q.demo, "reason": q.reason} for q in left_out
        ],
    }
