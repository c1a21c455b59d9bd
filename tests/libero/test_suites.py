import contextlib
import importlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.libero.installation import assets_dir
from pipeline.libero.sim.robosuite_import import import_libero
from pipeline.libero.suites import SUITES, init_states, language_of, tasks


@pytest.mark.sim
@pytest.mark.parametrize("suite", SUITES)
def test_tasks_are_the_benchmarks(suite: str) -> None:
    import_libero(assets_dir())
    with contextlib.redirect_stdout(io.StringIO()):
        benchmark = importlib.import_module("libero.libero.benchmark").get_benchmark(suite)()
    ours = tasks(suite)
    assert len(ours) == benchmark.get_num_tasks()
    for task in ours:
        theirs = benchmark.get_task(task.id)
        assert (task.name, task.language) == (theirs.name, theirs.language)
        assert task.bddl_file == Path(benchmark.get_task_bddl_file_path(task.id))
        assert task.init_states_file.name == f"{theirs.init_states_file}.npz"


def test_language_is_the_file_names() -> None:
    assert tasks("libero_spatial", [5])[0].language == "pick up the black bowl on the ramekin and place it on the plate"
    assert language_of("LIVING_ROOM_SCENE10_put_the_book_away") == "put the book away"


def test_max_steps_are_the_published_ones() -> None:
    assert {name: suite.max_steps for name, suite in SUITES.items()} == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }


def test_ids_choose_and_order_tasks() -> None:
    assert [task.id for task in tasks("libero_goal", [7, 2])] == [7, 2]


@pytest.mark.parametrize(
    ("suite", "ids", "message"),
    [
        ("libero_spacial", None, "Did you mean 'libero_spatial'"),
        ("libero_spatial", [10], "no task 10: ids go from 0 to 9"),
        ("libero_spatial", [-1], "no task -1"),
    ],
)
def test_unknown_suites_and_ids_are_refused(suite: str, ids: list[int] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tasks(suite, ids)


def test_init_states_are_those_in_the_file() -> None:
    task = tasks("libero_spatial", [5])[0]
    rows = init_states(task)
    assert rows.shape == (50, 92)
    assert rows.dtype == np.float64
    with np.load(task.init_states_file) as file:
        np.testing.assert_array_equal(rows, file["states"])


class Payload:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('a pickle ran code')",)


def test_init_states_never_run_code(tmp_path: Path) -> None:
    file = tmp_path / "bad.pruned_init.npz"
    np.savez(file, states=np.array([Payload()], dtype=object))
    with pytest.raises(DataError, match=r"bad\.pruned_init\.npz is not a readable init-states file"):
        init_states(replace(tasks("libero_spatial", [0])[0], init_states_file=file))
    with pytest.raises(SystemExit):  # the payload is live
        np.load(file, allow_pickle=True)["states"]


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


WHOLE = npz(states=np.zeros((50, 92)))


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", WHOLE[: len(WHOLE) // 2], npz(rows=np.zeros((2, 3))), npz(states=np.zeros(3))]
)
def test_damaged_init_states_are_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "damaged.pruned_init.npz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.pruned_init\.npz"):
        init_states(replace(tasks("libero_spatial", [0])[0], init_states_file=file))


def test_missing_init_states_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.pruned_init\.npz is missing.*make reinstall"):
        init_states(replace(tasks("libero_spatial", [0])[0], init_states_file=tmp_path / "gone.pruned_init.npz"))
