"""Collecting is complete, goes on where it stopped, and gives the same bytes in whatever order episodes end."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest

from pipeline.compute import Compute
from pipeline.errors import DataError
from pipeline.libero.demos import collect as collecting
from pipeline.libero.demos.collect import collect, fingerprint
from pipeline.libero.demos.read import demo_file, scan
from pipeline.libero.demos.write import Origin
from pipeline.libero.expert import Attempt, Noise
from pipeline.libero.settings import Demos
from pipeline.libero.suites import Task, tasks
from tests.libero.synthetic import SIM, make_episode

DEMOS = Demos("scripted", None, None, 3, False, 48, 0.0, 0.0, 0.0, noise_sigma=0.1, trajectory_diversity=1.0)
SERIAL = Compute("serial", None, None)
Tried = list[tuple[int, int, int]]


@pytest.fixture
def chosen() -> tuple[Task, ...]:
    return tasks("libero_spatial", [2, 7])


@pytest.fixture
def expert(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[tuple[int, int, int]]], Tried]:
    """Replace simulator and expert by made-up episodes that fail for these (task, row, attempt)."""

    def install(failing: set[tuple[int, int, int]]) -> Tried:
        tried: Tried = []

        def attempt(simulator: SimpleNamespace, origin: Origin, noise: Noise, diversity: float) -> Attempt:
            key = (simulator.task.id, origin.init_row, origin.attempt)
            tried.append(key)
            solved = key not in failing
            episode = replace(make_episode(4 + key[0], sum(key)), origin=origin) if solved else None
            return Attempt(solved, 10, 0, "retreat", episode)

        def simulator(self: collecting.Worker, task: Task) -> SimpleNamespace:
            return SimpleNamespace(task=task, info={"gl_used": "none"})

        monkeypatch.setattr(collecting, "ATTEMPTS", 2)
        monkeypatch.setattr(collecting, "attempt", attempt)
        monkeypatch.setattr(collecting.Worker, "simulator", simulator)
        return tried

    return install


def test_failed_attempts_are_repeated_and_hopeless_rows_left_out(
    expert: Callable, chosen: tuple[Task, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried = expert({(2, 48, 0), (7, 49, 0), (7, 49, 1)})
    with caplog.at_level(logging.WARNING):
        took = collect(chosen, SIM, DEMOS, SERIAL, tmp_path)
    assert tried == [
        (2, 48, 0),
        (2, 48, 1),
        (2, 49, 0),
        (2, 50, 0),
        (7, 48, 0),
        (7, 49, 0),
        (7, 49, 1),
        (7, 50, 0),
    ]
    demos, quarantine = scan(tmp_path, "libero_spatial", chosen)
    assert [(d.task.id, d.name) for d in demos] == [
        (2, "demo_0"),
        (2, "demo_1"),
        (2, "demo_2"),
        (7, "demo_0"),
        (7, "demo_1"),
    ]
    assert quarantine == []
    assert f"{chosen[1].name} row 49: not solved in 2 attempts" in caplog.text
    assert (took["episodes"], took["solved"], took["solved_first_attempt"], took["attempts"]) == (6, 5, 4, 8)
    assert took["simulators"] == [{"gl_used": "none"}]
    assert not (tmp_path / "parts" / "libero_spatial" / chosen[0].name).exists()


def test_an_interrupted_collection_goes_on_to_the_same_bytes(
    expert: Callable, chosen: tuple[Task, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert({(2, 49, 0), (2, 49, 1)})
    collect(chosen, SIM, DEMOS, SERIAL, tmp_path / "whole")
    for stop_after in (1, 2, 3, 5):
        work = tmp_path / str(stop_after)
        expert({(2, 49, 0), (2, 49, 1)})
        record = collecting._record
        done = 0

        def stopping(
            *args: object, record: Callable = record, stop_after: int = stop_after, **kwargs: object
        ) -> object:
            nonlocal done
            if done == stop_after:
                raise KeyboardInterrupt
            done += 1
            return record(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(collecting, "_record", stopping)
            collect(chosen, SIM, DEMOS, SERIAL, work)
        (work / "parts" / "x.npz.17.partial").write_bytes(b"cut off")
        tried = expert({(2, 49, 0), (2, 49, 1)})
        collect(chosen, SIM, DEMOS, SERIAL, work)
        rows = {key[:2] for key in tried}
        assert len(rows) == 6 - stop_after  # nothing is made twice
        for task in chosen:
            assert demo_file(work, task).read_bytes() == demo_file(tmp_path / "whole", task).read_bytes()
        assert not list(work.rglob("*.partial"))


def test_finished_work_is_not_repeated(expert: Callable, chosen: tuple[Task, ...], tmp_path: Path) -> None:
    expert(set())
    collect(chosen, SIM, DEMOS, SERIAL, tmp_path)
    tried = expert(set())
    assert collect(chosen, SIM, DEMOS, SERIAL, tmp_path)["episodes"] == 0
    assert tried == []


def test_a_task_with_no_solved_episode_is_an_error(expert: Callable, chosen: tuple[Task, ...], tmp_path: Path) -> None:
    expert({(7, row, n) for row in (48, 49, 50) for n in (0, 1)})
    with pytest.raises(DataError, match=r"task 7 .* solved none of the 3 .*Lower demos\.noise_sigma"):
        collect(chosen, SIM, DEMOS, SERIAL, tmp_path)


def test_suites_beyond_the_expert_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot solve libero_goal.*demos\.source.*official"):
        collect(tasks("libero_goal", [0]), SIM, DEMOS, SERIAL, tmp_path)


def test_fingerprint_follows_settings(chosen: tuple[Task, ...]) -> None:
    def of(sim: object = SIM, demos: object = DEMOS, some: tuple[Task, ...] = chosen) -> str:
        return fingerprint("libero_spatial", some, sim, demos)  # type: ignore[arg-type]

    assert of() == of()
    others = [
        of(sim=replace(SIM, render="full")),
        of(sim=replace(SIM, seed=1)),
        of(demos=replace(DEMOS, episodes=4)),
        of(demos=replace(DEMOS, noise_sigma=0.2)),
        of(some=chosen[:1]),
    ]
    assert len({of(), *others}) == 6


def test_a_second_try_is_asked_for_and_noted(expert: Callable, chosen: tuple[Task, ...], tmp_path: Path) -> None:
    expert(set())
    demos = replace(DEMOS, recovery_share=1.0, episodes=6)
    collect(chosen[:1], SIM, demos, SERIAL, tmp_path)
    with h5py.File(demo_file(tmp_path, chosen[0])) as file:
        noted = [json.loads(file["data"][f"demo_{i}"].attrs["origin"])["first_try"] for i in range(6)]
    assert noted == [collecting.first_try(chosen[0], 48 + i, SIM.seed, demos) for i in range(6)]
    assert {*noted} == {"missed", "misplaced"}


def test_a_share_of_the_demonstrations_are_second_tries(chosen: tuple[Task, ...]) -> None:
    task = chosen[0]

    def drawn(share: float) -> Counter:
        demos = replace(DEMOS, recovery_share=share, displaced=0.08, displaced_share=0.5)
        return Counter(
            (collecting.first_try(task, row, 0, demos), bool(collecting.displacement(row, demos))) for row in range(400)
        )

    assert {what for what, _ in drawn(0.0)} == {""}
    assert {what for what, _ in drawn(1.0)} == {"missed", "misplaced"}
    some = drawn(0.4)
    assert all(20 < some[what, moved] < 60 for what in ("missed", "misplaced") for moved in (True, False))


@pytest.mark.parametrize(("share", "rows"), [(0.0, []), (0.5, [1, 3, 5, 7, 9]), (0.2, [4, 9]), (1.0, [*range(10)])])
def test_a_share_of_the_rows_is_displaced_evenly(share: float, rows: list[int]) -> None:
    demos = replace(DEMOS, displaced=0.08, displaced_share=share)
    assert [row for row in range(10) if collecting.displacement(row, demos)] == rows
    assert {collecting.displacement(row, demos) for row in rows} <= {0.08}
