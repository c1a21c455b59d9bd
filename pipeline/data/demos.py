"""Demonstrations, LIBERO's or your own, for whoever reads them: which tasks there are, which are usable, their rows.

`<root>/<suite>/` tells which of the two it holds, as `stages.demos` has left it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data import own
from pipeline.errors import DataError, did_you_mean
from pipeline.libero import suites
from pipeline.libero.demos import read as libero
from pipeline.libero.demos.read import Quarantined

Task = suites.Task | own.Task
Demo = libero.Demo | own.Demo


def tasks(root: Path, suite: str, ids: Sequence[int] | None = None) -> tuple[Task, ...]:
    """Return the tasks of `suite` with these ids, in the order asked for; None is all of them.

    Raises:
        DataError: no such suite or id.
    """
    if own.is_own(root / suite):
        return own.choose(own.DataSet.of(root / suite).tasks(), ids)
    if suite not in suites.SUITES:
        raise DataError(
            f"no LIBERO suite {suite!r}, and no data of your own in {root / suite}: python -m stages.demos makes it "
            f"(demos.source: own).{did_you_mean(suite, suites.SUITES)}"
        )
    return suites.tasks(suite, ids)


def scan(
    root: Path, suite: str, chosen: Sequence[Task], cameras: Sequence[str]
) -> tuple[list[Demo], list[Quarantined]]:
    """Check the demonstrations of these tasks; return the usable ones, and the others.

    Raises:
        DataError: a task's file is missing, a camera is unknown, or nothing is usable.
    """
    if not own.is_own(root / suite):
        found, left_out = libero.scan(root, suite, [task for task in chosen if isinstance(task, suites.Task)], cameras)
        return [*found], left_out
    data = own.DataSet.of(root / suite)
    if unknown := [camera for camera in cameras if camera not in data.keys.cameras]:
        raise DataError(
            f"{root / suite}: has no camera {unknown[0]!r}.{did_you_mean(unknown[0], data.keys.cameras)} "
            "demos.keys.cameras names them; run python -m stages.demos after a change"
        )
    mine, left_out = data.scan()
    return [demo for demo in mine if demo.task in chosen], left_out


def read(demo: Demo, cameras: Sequence[str], start: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Read rows `start:stop`: images, and a float32 array for each signal; see `own.read`, `libero.demos.read.read`.

    Raises:
        DataError: it cannot be read (any more).
    """
    return (
        own.read(demo, cameras, start, stop) if isinstance(demo, own.Demo) else libero.read(demo, cameras, start, stop)
    )


def digest(demo: Demo) -> str:
    """Return the SHA-256 of a demonstration's data. Raises DataError as `read` does."""
    return own.digest(demo) if isinstance(demo, own.Demo) else libero.digest(demo)
