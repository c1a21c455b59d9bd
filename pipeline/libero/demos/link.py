"""Demonstrations that are elsewhere, yours or LIBERO's own, linked to where scripted ones would lie."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DataError
from pipeline.libero.demos.defects import not_a_file
from pipeline.libero.demos.download import download
from pipeline.libero.demos.layout import GUIDE, demo_file
from pipeline.libero.settings import Demos
from pipeline.libero.suites import Task


def link(settings: Demos, tasks: Sequence[Task], work: Path, directory: Path) -> None:
    """Put symbolic links to the files of source "path" or "official" below `work`.

    Symbolic and not hard links: DVC makes what it caches read-only, and a hard link would do that to your own file.

    Args:
        directory: that is about to be replaced.

    Raises:
        DataError: a file is missing, or lies in `directory`.
        AssetError: a download failed.
    """
    for task in tasks:
        source = download(task) if settings.source == "official" else _own(settings, task, len(tasks))
        if source.resolve().is_relative_to(directory.resolve()):
            raise DataError(
                f"{source}: lies in {directory}, which this stage is about to replace. Move the files elsewhere and "
                "name that directory in demos.path"
            )
        name = demo_file(work, task)
        name.parent.mkdir(parents=True, exist_ok=True)
        name.unlink(missing_ok=True)
        name.symlink_to(source)


def _own(settings: Demos, task: Task, count: int) -> Path:
    path = demo_file(Path(settings.path or "").expanduser().resolve(), task)
    if problem := not_a_file(path):
        raise DataError(
            f"{path} {problem}. demos.path must name a directory that holds {task.suite}/<task>_demo.hdf5 for each "
            f"task ({count} of {task.suite} are asked for; data.tasks chooses them). {GUIDE}"
        )
    return path
