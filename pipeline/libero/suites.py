"""LIBERO's suites: which tasks they have, in which order, with which words, from which init states.

Reads LIBERO's files without importing it, so that listing tasks starts no simulator.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from pipeline.errors import DataError, did_you_mean
from pipeline.libero.installation import load_states, package_dir


@dataclass(frozen=True)
class Suite:
    """One benchmark suite.

    Attributes:
        name: as LIBERO spells it.
        max_steps: control steps after settling, before an episode counts as failed.
    """

    name: str
    max_steps: int


# The limits that OpenVLA-OFT (run_libero_eval.py) and openpi (examples/libero/main.py) use: a little more than the
# longest human demonstration of each suite, which has 193, 254, 270, 505 and 373 steps.
SUITES = {
    suite.name: suite
    for suite in (
        Suite("libero_spatial", 220),
        Suite("libero_object", 280),
        Suite("libero_goal", 300),
        Suite("libero_10", 520),
        Suite("libero_90", 400),
    )
}


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        id: LIBERO's index in the suite (task order 0).
        name: file name without ending; demonstrations are `<suite>/<name>_demo.hdf5`.
        language: the instruction that the benchmark evaluates with: derived from the file name. The text inside the
            BDDL file differs in 25 of the first 30 tasks.
    """

    suite: str
    id: int
    name: str
    language: str
    bddl_file: Path
    init_states_file: Path


def tasks(suite: str, ids: Sequence[int] | None = None) -> tuple[Task, ...]:
    """Return the tasks of `suite` with these ids, in the order asked for; None is all of them.

    Raises:
        DataError: no such suite or id.
    """
    if suite not in SUITES:
        raise DataError(f"no LIBERO suite {suite!r}.{did_you_mean(suite, SUITES)}")
    names = _task_names()[suite]
    chosen = range(len(names)) if ids is None else ids
    for i in chosen:
        if not 0 <= i < len(names):
            raise DataError(f"{suite} has no task {i}: ids go from 0 to {len(names) - 1}")
    root = package_dir()
    return tuple(
        Task(
            suite=suite,
            id=i,
            name=names[i],
            language=language_of(names[i]),
            bddl_file=root / "bddl_files" / suite / f"{names[i]}.bddl",
            init_states_file=root / "init_files" / suite / f"{names[i]}.pruned_init.npz",
        )
        for i in chosen
    )


def language_of(name: str) -> str:
    """Return the instruction for a task's file name: its words, without LIBERO-100's `KITCHEN_SCENE3_` prefix."""
    words = name.split("_")
    if name[0].isupper():
        scene = next((i for i, word in enumerate(words) if word.startswith("SCENE")), -1)
        words = words[scene + 1 :]
    return " ".join(words)


def init_states(task: Task) -> Float64[np.ndarray, "episodes D"]:
    """Return the benchmark's initial simulator states: (50, D) flattened MjSimState rows (time, qpos, qvel).

    Episode i of an evaluation starts from row i.

    Raises:
        DataError: the file is missing or is not such an array.
    """
    return load_states(task.init_states_file)


@cache
def _task_names() -> dict[str, list[str]]:
    """LIBERO's map from suite to task names, in task order 0; its module is plain data, loaded by itself."""
    path = package_dir() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("_libero_suite_task_map", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.libero_task_map


def check_row(task: Task, row: int, rows: int) -> None:
    """Raise DataError for an init state that the task lacks."""
    if not 0 <= row < rows:
        raise DataError(
            f"{task.suite} task {task.id} has initial states 0 to {rows - 1}, and row {row} is asked for. "
            "Lower eval_libero.episodes or eval_libero.first_init_state."
        )
