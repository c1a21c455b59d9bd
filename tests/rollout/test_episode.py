"""One episode in the real simulator: the protocol, step by step, and every way in which it can go wrong."""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import Task, init_states
from pipeline.rollout import episode
from pipeline.rollout.baselines import NoopAgent, RandomAgent
from pipeline.rollout.episode import (
    EpisodeSettings,
    PolicyError,
    _checked,
    _digest,
    episode_seed,
    run_episode,
    step_limit,
)
from pipeline.rollout.video import VideoRecorder, read_frames
from tests.rollout.agents import Clock, Odd, Scripted, Slow

pytestmark = pytest.mark.sim
CAMERAS = ("agentview", "eye_in_hand")
SETTINGS = EpisodeSettings(first_init_state=0, max_steps=11, timeout_s=120.0, seed=3, sim_seed=0)


@pytest.fixture(scope="module")
def scripted(sim: Sim, task: Task) -> Iterator[Scripted]:
    with Scripted(task, sim, CAMERAS) as made:
        yield made


@pytest.fixture
def simulator(scripted: Scripted) -> Scripted:
    """The one simulator of these tests, as it should be."""
    scripted.solved_at = scripted.crash_at = 0
    return scripted


def test_cameras_are_drawn_for_a_policy_call_and_at_no_other_time(
    simulator: Scripted, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    observe = Simulator.observe
    monkeypatch.setattr(Simulator, "observe", lambda self: drawn.append(1) or observe(self))
    for n_action_steps, steps in ((4, 11), (8, 16), (1, 3)):
        drawn.clear()
        record = run_episode(
            simulator, RandomAgent(n_action_steps, CAMERAS), task, 0, replace(SETTINGS, max_steps=steps)
        )
        assert (
            len(drawn) == record.renders == record.policy_calls == len(record.policy_ms) == ceil(steps / n_action_steps)
        )
        assert (record.outcome, record.steps) == ("failure", steps)
    drawn.clear()
    record = run_episode(simulator, NoopAgent(4), task, 0, SETTINGS)
    assert not drawn and (record.policy_calls, record.renders) == (3, 0), "for a blind agent nothing is drawn"


def test_a_recording_has_a_frame_per_step_and_changes_nothing(simulator: Scripted, task: Task) -> None:
    agent = RandomAgent(4, CAMERAS)
    plain = run_episode(simulator, agent, task, 1, SETTINGS)
    other = run_episode(simulator, agent, task, 2, SETTINGS)
    recorder = VideoRecorder(CAMERAS)
    filmed = run_episode(simulator, agent, task, 1, SETTINGS, recorder)
    assert filmed.result() == plain.result(), "the same, with an episode and a camera in between"
    assert other.final_state != plain.final_state
    frames = read_frames(recorder.close() or b"")
    assert len(frames) == filmed.renders == 12
    simulator.reset(init_states(task)[1], 0)
    first = np.concatenate([simulator.observe().images[camera] for camera in CAMERAS], axis=1)
    assert np.abs(frames[0].astype(int) - first).mean() < 4, "upright, and from before the first action"


def test_protocol_is_seed_reset_row_settle_act(sim: Sim, simulator: Scripted, task: Task) -> None:
    settings = replace(SETTINGS, first_init_state=5)
    record = run_episode(simulator, NoopAgent(4), task, 2, settings)
    assert record.init_row == 7
    with Simulator(task, sim) as fresh:
        env = fresh.env
        env.seed(0)
        env.reset()
        fresh.set_state(init_states(task)[7])
        for _ in range(sim.settle_steps + 11):
            env.step([0, 0, 0, 0, 0, 0, -1])
        assert record.final_state == _digest(fresh.state())


@pytest.mark.parametrize(("at", "calls"), [(4, 1), (6, 2)])
def test_success_at_any_step_ends_the_episode(simulator: Scripted, task: Task, at: int, calls: int) -> None:
    simulator.solved_at = at
    record = run_episode(simulator, RandomAgent(4), task, 0, SETTINGS)
    assert (record.outcome, record.steps, record.policy_calls) == ("success", at, calls)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nan", "the agent gave nan in action 1, component 3"),
        ("raise", "the agent's act() raised RuntimeError('no idea') (agents.py:"),
    ],
)
def test_an_agent_that_gives_no_action_has_failed(simulator: Scripted, task: Task, what: str, said: str) -> None:
    record = run_episode(simulator, Odd(what), task, 6, SETTINGS)
    assert (record.outcome, record.error_kind) == ("policy_error", "policy")
    assert (record.steps, record.policy_calls) == (4, 1 + (what == "nan"))
    assert said in str(record.error)
    assert (record.suite, record.task, record.episode) == ("libero_spatial", 0, 6)


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (np.full((4, 7), np.inf), "the agent gave inf in action 0, component 0"),
        (np.zeros((4, 6)), r"shape \(4, 6\), not \(h, 7\) with h >= 4"),
        (np.zeros((3, 7)), r"shape \(3, 7\), not"),
        (np.zeros(7), r"shape \(7,\), not"),
        (np.array([["a"] * 7] * 4), "the agent gave ndarray, not numbers"),
    ],
)
def test_what_is_no_action_is_said(actions: np.ndarray, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        _checked(actions, 4)


def test_a_simulator_that_crashes_is_an_error(simulator: Scripted, task: Task) -> None:
    simulator.crash_at = 5
    record = run_episode(simulator, RandomAgent(4), task, 0, SETTINGS)
    assert (record.outcome, record.error_kind, record.steps) == ("error", "simulator", 4)
    assert "the simulator is unstable" in str(record.error) and "agents.py:" in str(record.error)
    assert record.final_state is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that moves only when told to, so that no test depends on the machine's speed."""
    clock = Clock()
    monkeypatch.setattr(episode, "own_time", lambda: clock.now)
    return clock


def test_a_policy_that_is_too_slow_has_failed(simulator: Scripted, task: Task, clock: Clock) -> None:
    record = run_episode(simulator, Slow(clock, 5.1), task, 0, replace(SETTINGS, timeout_s=10.0))
    assert (record.outcome, record.error_kind, record.policy_calls, record.steps) == ("policy_error", "timeout", 2, 4)
    assert "10.2 s for 4 steps, 10.2 s of them the policy's: more than eval_libero.timeout_s 10" in str(record.error)


def test_a_simulator_that_is_too_slow_is_no_fault_of_the_policy(
    simulator: Scripted, task: Task, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = simulator.step
    monkeypatch.setattr(simulator, "step", lambda action: clock.pass_by(2.0) or step(action))
    record = run_episode(simulator, Slow(clock, 5.1), task, 0, replace(SETTINGS, timeout_s=12.0))
    assert (record.outcome, record.error_kind, record.steps) == ("error", "timeout", 1), "8 s, of them settling's 6"


def test_waiting_for_a_core_is_nobodys_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's figures: nanoseconds that the thread ran, that it waited for a core, and slices."""
    now = [100.0]
    monkeypatch.setattr(episode, "perf_counter", lambda: now[0])
    texts = iter(["5000000000 1000000000 7", "5000000000 31000000000 8"])
    monkeypatch.setattr(Path, "read_text", lambda self: next(texts))
    before, now[0] = episode.own_time(), 140.0
    assert episode.own_time() - before == pytest.approx(10), "40 s, of which 30 in the queue"


def test_a_machine_without_memory_is_no_fault_of_the_policy(simulator: Scripted, task: Task) -> None:
    record = run_episode(simulator, Odd("memory"), task, 0, SETTINGS)
    assert (record.outcome, record.error_kind) == ("error", "memory")


def test_a_row_that_the_task_lacks_is_refused(simulator: Scripted, task: Task) -> None:
    with pytest.raises(PipelineError, match="initial states 0 to 49, and row 53 is asked for"):
        run_episode(simulator, NoopAgent(), task, 3, replace(SETTINGS, first_init_state=50))


def test_seeds_and_limits_are_the_episodes_own(task: Task) -> None:
    seeds = {episode_seed(s, replace(task, id=t), e) for s in range(3) for t in range(3) for e in range(50)}
    assert len(seeds) == 450 and all(0 <= seed < 2**63 for seed in seeds)
    assert episode_seed(0, task, 0) == episode_seed(0, task, 0)
    assert step_limit(task, replace(SETTINGS, max_steps=None)) == 220
    assert step_limit(task, SETTINGS) == 11
