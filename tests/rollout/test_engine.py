"""Many episodes: the same records for any number of workers, after any interruption, whatever goes wrong in one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.compute import Compute, map_unordered
from pipeline.errors import AssetError, DataError, PipelineError
from pipeline.files import exclusive
from pipeline.libero.settings import Sim
from pipeline.libero.suites import Task
from pipeline.rollout import engine
from pipeline.rollout.agent import Agent, PolicyAgent
from pipeline.rollout.baselines import RandomAgent
from pipeline.rollout.engine import Evaluation, evaluate, simulators
from pipeline.rollout.episode import EpisodeSettings, episode_seed
from pipeline.rollout.plan import load_policy
from pipeline.rollout.results import EpisodeRecord, Journal, read_records
from tests import base
from tests.rollout.agents import Odd, Scripted
from tests.rollout.make import record

SERIAL = Compute("serial", None, 1)
RANDOM = partial(RandomAgent, 4)
SETTINGS = EpisodeSettings(first_init_state=4, max_steps=6, timeout_s=120.0, seed=0, sim_seed=0)


@pytest.fixture
def plan(sim: Sim, task: Task) -> Callable[..., Evaluation]:
    """Make an evaluation of three short episodes."""

    def make(make_agent: Callable[[], Agent] = RANDOM, **changes) -> Evaluation:
        made = Evaluation(make_agent, {"name": "test"}, replace(sim, image_size=32), (task,), 3, SETTINGS)
        return replace(made, **changes)

    return make


def results(records: list[EpisodeRecord]) -> list[dict]:
    return [r.result() for r in records]


@pytest.mark.sim
@pytest.mark.slow
def test_an_evaluation_goes_on_where_it_was(plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = plan(videos_per_task=1)
    first = evaluate(evaluation, SERIAL, tmp_path / "whole")
    assert [(r.episode, r.init_row, r.outcome, r.attempts) for r in first] == [
        (0, 4, "failure", 1),
        (1, 5, "failure", 1),
        (2, 6, "failure", 1),
    ]
    assert len({r.final_state for r in first}) == 3
    assert [r.video is not None for r in first] == [True, False, False]
    assert (tmp_path / "whole" / str(first[0].video)).stat().st_size > 0
    (info,) = simulators(tmp_path / "whole")
    assert info["gl_used"] in ("egl", "osmesa") and info["render"] == "fast"

    # A kill in the third episode run, of which half a line was written.
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    lines = (tmp_path / "whole/episodes.jsonl").read_bytes().splitlines(keepends=True)
    (resumed / "episodes.jsonl").write_bytes(lines[1] + lines[0] + lines[2][:100])
    ran = []

    def spy(fn, items, *args, **kwargs):
        ran.append([(item.episode, item.film) for item in items])
        return map_unordered(fn, items, *args, **kwargs)

    monkeypatch.setattr(engine, "map_unordered", spy)
    again = evaluate(evaluation, SERIAL, resumed)
    assert ran == [[(2, False)], [(0, True)]], "what is left; and a failure, whose film was not there"
    assert results(again) == results(first)
    assert len(read_records(resumed / "episodes.jsonl")) == 3
    ran.clear()
    assert evaluate(evaluation, SERIAL, resumed) == again
    assert ran == [[], []], "nothing is run twice"


def test_an_episode_whose_worker_dies_is_an_error(plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pipeline.compute calls `lost` for an item that killed its worker thrice: its tests prove that."""
    monkeypatch.setattr(engine, "map_unordered", lambda fn, items, compute, setup, lost: [(i, lost(i)) for i in items])
    records = evaluate(plan(), SERIAL, tmp_path)
    assert [(r.episode, r.init_row, r.outcome, r.error_kind) for r in records] == [
        (i, 4 + i, "error", "lost") for i in range(3)
    ]
    assert simulators(tmp_path) == []


@pytest.mark.sim
def test_an_error_is_tried_once_more_in_a_new_simulator(plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(Scripted):
        crash_at, once = 3, tmp_path / "happened"

    monkeypatch.setattr(engine, "Simulator", Breaks)
    (record,) = evaluate(plan(episodes=1), SERIAL, tmp_path / "once")
    assert (record.outcome, record.attempts, record.error) == ("failure", 2, None)
    Breaks.once = None
    (record,) = evaluate(plan(episodes=1), SERIAL, tmp_path / "always")
    assert (record.outcome, record.error_kind, record.attempts) == ("error", "simulator", 2)


@pytest.mark.sim
def test_failures_are_filmed_afterwards(plan, task: Task, tmp_path: Path) -> None:
    """Episode 0 is an error of the policy, so that the first failure is one that nobody knew to film."""
    errs = partial(Odd, "nan", (episode_seed(0, task, 0),))
    records = evaluate(plan(errs, episodes=2, videos_per_task=1), SERIAL, tmp_path)
    assert [(r.outcome, r.attempts, r.video is not None) for r in records] == [
        ("policy_error", 1, True),
        ("failure", 1, True),
    ], "an error of the policy is not tried again"
    assert records[0].error_kind == "policy" and "component 3" in str(records[0].error)
    assert [r.video for r in read_records(tmp_path / "episodes.jsonl")] == [None, None], "one line per episode"


@pytest.mark.sim
def test_a_server_that_cannot_answer_is_tried_again_and_counted_apart(plan, tmp_path: Path) -> None:
    (record,) = evaluate(plan(partial(Odd, "server"), episodes=1), SERIAL, tmp_path)
    assert (record.outcome, record.error_kind, record.attempts) == ("error", "server", 2)
    assert str(record.error).startswith("the server is full")


def test_episodes_of_nobody_knows_whom_are_not_gone_on_with(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = plan(resumable=False)
    monkeypatch.setattr(engine, "_run", lambda *args: iter(()))
    evaluate(evaluation, SERIAL, tmp_path)  # the first run has nothing before it
    with Journal(tmp_path / "episodes.jsonl") as journal:
        journal.append(record())
    with pytest.raises(DataError, match=r"holds 1 episodes of an earlier run.*Delete that directory.*--agent-id TEXT"):
        evaluate(evaluation, SERIAL, tmp_path)
    assert len(evaluate(plan(), SERIAL, tmp_path)) == 1


def test_nothing_runs_if_a_row_is_lacking(plan, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="row 53 is asked for"):
        evaluate(plan(episodes=50), SERIAL, tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_share_a_directory(plan, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "lock", "evaluation"),
        pytest.raises(DataError, match="another process is at this very evaluation"),
    ):
        evaluate(plan(), SERIAL, tmp_path)


@pytest.mark.sim
def test_missing_assets_are_found_before_a_worker_starts(
    plan, sim: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(engine, "map_unordered", start)
    evaluation = plan(sim=replace(sim, assets_path=str(tmp_path / "nowhere")))
    for compute in (SERIAL, replace(SERIAL, scheduler="local")):
        with pytest.raises(AssetError, match="nowhere"):
            evaluate(evaluation, compute, tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.sim
def test_assets_that_a_worker_lacks_end_the_run(
    plan, sim: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "find_assets", lambda _: None)  # this machine has them
    monkeypatch.setattr(engine, "picture_identity", lambda _: {})
    evaluation = plan(sim=replace(sim, assets_path=str(tmp_path / "nowhere")))
    with pytest.raises(AssetError, match="nowhere"):
        evaluate(evaluation, SERIAL, tmp_path / "work")
    with Journal(tmp_path / "work/episodes.jsonl") as journal:
        assert not journal.records, "a setting that is wrong is no episode's error"


def test_workers_are_spread_over_the_gpus(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    activated, loaded = [], []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("pipeline.libero.sim.gl.activate", lambda asked, gpu, cuda: activated.append((gpu, cuda)))
    monkeypatch.setattr(PolicyAgent, "load", lambda path, encoder, sim, device, *_: loaded.append(device) or RANDOM())

    def start(index: int, gpus: int, device: str) -> None:
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        for module in ("engine", "agent"):
            monkeypatch.setattr(f"pipeline.rollout.{module}.worker_index", lambda: index)
        make = partial(load_policy, Path("policy"), base.params().embed.encoder, plan().sim, device, None, 4)
        engine.Worker(plan(make, device=device))

    for index in range(3):
        start(index, 2, "cuda")
    start(5, 1, "cuda")
    start(1, 2, "cuda:0")
    start(1, 2, "cpu")
    assert loaded == ["cuda:0", "cuda:1", "cuda:0", "cuda:0", "cuda:0", "cpu"]
    assert activated == [(0, "cuda:0"), (1, "cuda:1"), (0, "cuda:0"), (None, "cuda:0"), (1, "cuda:0"), (1, None)]


def test_fingerprint_changes_with_whatever_moves_a_result(plan, sim: Sim, task: Task) -> None:
    evaluation = plan()
    variants = [
        replace(evaluation, identity={"name": "other"}),
        replace(evaluation, sim=replace(sim, render="full")),
        replace(evaluation, tasks=(replace(task, id=1),)),
        replace(evaluation, episodes=4),
        *(
            replace(evaluation, settings=replace(SETTINGS, **change))
            for change in ({"seed": 1}, {"max_steps": 7}, {"first_init_state": 0}, {"sim_seed": 1})
        ),
    ]
    prints = {e.fingerprint() for e in (evaluation, *variants)}
    assert len(prints) == 9
    assert plan(partial(RandomAgent, 4)).fingerprint() == evaluation.fingerprint()
