"""The expert solves the task, and what is recorded of it is true: replayed, it happens again."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import expert as expert_benchmark
from pipeline.config.compose import compose
from pipeline.libero.conventions import upright
from pipeline.libero.demos.write import Episode, FirstTry, Origin
from pipeline.libero.expert import Attempt, Expert, Noise, attempt
from pipeline.libero.expert.attempt import _reset
from pipeline.libero.expert.grasp import DEPTHS, candidates, choose, place_position
from pipeline.libero.expert.scene import Scene
from pipeline.libero.settings import Sim
from pipeline.libero.sim.kinematics import Kinematics, above, rotation_vector, yaw
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import init_states, tasks
from tests.imports import ROOT

pytestmark = [pytest.mark.sim, pytest.mark.slow]

SIM = Sim(None, "fast", "auto", 64, 10, 0)
ORIGIN = Origin(init_row=23, seed=0, attempt=0)
NOISE = Noise(sigma=0.2, ar=0.5)
TASK = tasks("libero_spatial", [0])[0]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(TASK, SIM) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def tried(simulator: Simulator) -> Attempt:
    return attempt(simulator, ORIGIN, NOISE)


@pytest.fixture(scope="module")
def episode(tried: Attempt) -> Episode:
    assert tried.success and tried.episode is not None, tried
    return tried.episode


def test_episode_ends_with_ten_steps_of_success(tried: Attempt, episode: Episode) -> None:
    assert len(episode.actions) == tried.steps + 9
    assert episode.origin == ORIGIN
    assert episode.env_name == "Libero_Tabletop_Manipulation"
    assert "robosuite/models/assets/" in episode.model_xml
    assert 'file="/' not in episode.model_xml  # no machine's paths


def test_an_attempt_depends_on_its_arguments_only(simulator: Simulator, tried: Attempt, episode: Episode) -> None:
    """The simulator has done something else since; and nobody draws this time."""
    simulator.reset(init_states(TASK)[24], seed=5)
    for _ in range(5):
        simulator.step(np.array([1.0, -1, -1, 0.5, 0, 0, 1]))
    again = attempt(simulator, ORIGIN, NOISE, record=False)
    assert (again.success, again.steps, again.retries) == (tried.success, tried.steps, tried.retries)
    joints = simulator.proprio().joint_pos
    np.testing.assert_array_equal(joints, episode.joint_pos[-1])


def test_replay_gives_the_same_states_and_solves_the_task(simulator: Simulator, episode: Episode) -> None:
    simulator.reset(init_states(TASK)[ORIGIN.init_row], ORIGIN.seed)
    np.testing.assert_array_equal(simulator.state(), episode.states[0])
    done = []
    for state, action in zip(episode.states, episode.actions, strict=True):
        np.testing.assert_array_equal(simulator.state(), state)
        done.append(simulator.step(action))
    assert done[-10:] == [True] * 10
    assert not done[-11]


def test_replay_from_the_recorded_state_alone_solves_the_task(simulator: Simulator, episode: Episode) -> None:
    """As users of the file do it: reset anyhow, then set the state. The solver's warm start differs: not bitwise."""
    simulator.reset(init_states(TASK)[0], ORIGIN.seed)
    simulator.set_state(episode.states[0])
    simulator.env.robots[0].controller.reset_goal()
    last = [simulator.step(action) for action in episode.actions][-1]
    assert last
    assert np.abs(simulator.proprio().joint_pos - episode.joint_pos[-1]).max() < 0.02


def test_observations_follow_their_action(episode: Episode) -> None:
    """states[t] is before action[t], obs[t] after it, so that obs[t] shows states[t + 1]: one 2 ms substep less.

    LIBERO's sensors sample before a control step's last substep. Joints come first in qpos, after the time.
    """
    joints, fingers = episode.states[:, 1:8], episode.states[:, 8:10]
    substep = 0.002 / 0.05
    moved = np.abs(joints[1:] - joints[:-1]).mean()
    assert np.abs(episode.joint_pos[:-1] - joints[1:]).mean() < 2 * substep * moved
    assert np.abs(episode.joint_pos[:-1] - joints[:-1]).mean() > 0.8 * moved
    assert np.abs(episode.gripper[:-1] - fingers[1:]).max() < 5e-4


def test_frames_are_upright_and_show_their_state(simulator: Simulator, episode: Episode) -> None:
    simulator.reset(init_states(TASK)[ORIGIN.init_row], ORIGIN.seed)
    t = len(episode.actions) // 2
    simulator.set_state(episode.states[t + 1])
    now = simulator.observe()
    for camera, frames in episode.images.items():
        drawn = now.images[camera].astype(float)
        assert np.abs(drawn - frames[t]).mean() < 2
        assert np.abs(drawn - upright(frames[t])).mean() > 15
    # The table is light and below, the wall behind is dark and above.
    first = episode.images["agentview"][0].mean(axis=2)
    assert first[-16:].mean() > first[:8].mean() + 10


def test_noise_is_on_the_executed_action_only(episode: Episode) -> None:
    noise = episode.actions - episode.expert_actions
    assert (np.abs(episode.actions) <= 1).all()
    for actions in (episode.actions, episode.expert_actions):
        assert set(actions[:, 6]) == {-1.0, 1.0}
    assert (noise[:, 6] == 0).all()
    moved = np.abs(noise[:, 0]) > 0
    assert 0.4 < moved.mean() < 0.95  # none while grasping, setting down and letting go
    unclipped = noise[moved][(np.abs(episode.actions[moved, :3]) < 1).all(axis=1)]
    assert 0.1 < unclipped[:, :3].std() < 0.3
    assert unclipped[:, 3:6].std() < 0.1


def test_the_bowl_is_lowered_with_noise_until_it_is_near_its_place(simulator: Simulator) -> None:
    simulator.reset(init_states(TASK)[0], 0)
    scene = Scene(simulator)
    expert = Expert(scene, np.random.default_rng(0))
    seen = set()
    while expert.phase != "release":
        height = scene.position(scene.object)[2] - place_position(scene)[2]
        lowering = expert.phase == "lower"
        move = expert.act()
        if lowering:
            assert move.free == (height > 0.02)
            seen.add(move.free)
        simulator.step(move.action)
    assert seen == {True, False}


def test_the_drawer_task_is_solved_too(simulator: Simulator) -> None:
    with Simulator(tasks("libero_spatial", [4])[0], SIM) as drawer:
        assert attempt(drawer, Origin(0, 0, 0), Noise(0.0, 0.0), record=False).success


def test_how_often_it_succeeds_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(compose(["compute=serial"], ROOT / "configs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["expert", "--tasks", "0", "--rows", "1", "--out", "expert.json"])
    for _ in range(2):  # the second time nothing is left to do
        expert_benchmark.main()
        table = json.loads(Path("expert.json").read_text())
        assert (table["successes"], table["n"], len(table["per_task"])) == (1, 1, 1)
        assert 50 < table["per_task"][0]["mean_steps"] < 220


def test_rows_past_the_benchmarks_are_placements_of_their_own(simulator: Simulator) -> None:
    from pipeline.libero.expert.attempt import _reset

    states = []
    for row in (50, 51, 50):
        _reset(simulator, Origin(row, 0, 0))
        states.append(simulator.state())
    np.testing.assert_array_equal(states[0], states[2])
    assert not np.allclose(states[0], states[1], atol=1e-3)


def test_inverse_kinematics_knows_what_can_be_reached(simulator: Simulator) -> None:
    simulator.reset(init_states(TASK)[0], 0)
    scene = Scene(simulator)
    assert (scene.object, scene.target) == ("akita_black_bowl_1", "plate_1")
    kinematics = Kinematics(scene)
    before = simulator.state()
    near = kinematics.reach([scene.hand + np.array([0.05, 0.05, -0.05])], yaw(0.3) @ scene.hand_rotation)
    assert near.error < 1e-3 and near.penetration == 0
    assert kinematics.reach([scene.hand + above(2.0)], scene.hand_rotation).error > 0.5
    table = kinematics.reach([np.array([0.0, 0.0, 0.86])], scene.hand_rotation)  # its top is at 0.90
    assert table.penetration > 0.01
    np.testing.assert_array_equal(simulator.state(), before)


def test_grasps_lie_on_the_rim(simulator: Simulator) -> None:
    simulator.reset(init_states(TASK)[0], 0)
    scene = Scene(simulator)
    bowl = scene.position("akita_black_bowl_1")
    found = candidates(scene)
    assert len(found) == 24 * len(DEPTHS)
    for grasp, depth in found:
        wall = {0.026: 0.0457, 0.020: 0.0472, 0.015: 0.0485}[depth]  # metres; the bowl is wider above
        assert np.linalg.norm((grasp.position - bowl)[:2]) == pytest.approx(wall, abs=4e-4)
        finger_axis = yaw(grasp.yaw)[:, 1]  # they must open across the wall
        assert abs(finger_axis @ [np.cos(grasp.angle), np.sin(grasp.angle), 0]) == pytest.approx(1)
        assert abs(grasp.yaw) <= np.pi / 2
    rng = np.random.default_rng(0)
    first = choose(scene, scene.hand_rotation, rng, [])
    second = choose(scene, scene.hand_rotation, rng, [first.angle])
    assert abs((first.angle - second.angle + np.pi) % (2 * np.pi) - np.pi) > 0.6
    assert place_position(scene)[2] > scene.position("plate_1")[2]


def test_rotation_vector_is_axis_times_angle() -> None:
    np.testing.assert_allclose(rotation_vector(yaw(0.7)), [0, 0, 0.7], atol=1e-12)
    np.testing.assert_allclose(rotation_vector(yaw(0.7) @ yaw(-0.9)), [0, 0, -0.2], atol=1e-12)
    np.testing.assert_array_equal(above(0.1), [0, 0, 0.1])


@pytest.mark.parametrize(("what", "row"), [("missed", 23), ("missed", 30), ("misplaced", 23)])
def test_a_second_try_begins_where_the_first_one_failed(simulator: Simulator, what: FirstTry, row: int) -> None:
    origin = Origin(row, 0, 0, first_try=what)
    tried, again = (attempt(simulator, origin, NOISE) for _ in range(2))
    assert tried.success and tried.episode is not None and again.episode is not None
    np.testing.assert_array_equal(tried.episode.states, again.episode.states)
    simulator.reset(init_states(TASK)[row], 0)
    scene = Scene(simulator)
    bowl = scene.position(scene.object)
    simulator.set_state(tried.episode.states[0])
    off = scene.position(scene.object) - place_position(scene)
    if what == "missed":
        assert np.abs(scene.position(scene.object) - bowl).max() < 0.01, "the bowl is where it was"
        assert scene.hand[2] < bowl[2] + 0.20, "and the hand is near it"
        assert scene.finger_gap < 0.003, "and closed on nothing: the rim is thicker"
    else:
        assert 0.03 < np.linalg.norm(off[:2]) < 0.09, "LIBERO's plate holds what is within 3 cm"
        assert np.linalg.norm(scene.hand - scene.position(scene.object)) < 0.2 and scene.finger_gap > 0.07
    assert tried.episode.origin == origin


def test_there_is_no_noise_beside_the_bowl_when_a_second_try_begins(simulator: Simulator) -> None:
    _reset(simulator, Origin(23, 0, 0))
    expert = Expert(Scene(simulator), np.random.default_rng(0), diversity=0.0)
    move = expert.act()
    assert expert.phase == "approach" and move.free, "high above the table"
    while expert.phase != "close":
        simulator.step(expert.act().action)
    expert.begin_again()
    beside = expert.act()
    assert expert.phase == "approach" and not beside.free


def test_displaced_demonstrations_begin_elsewhere_and_succeed(simulator: Simulator, tried: Attempt) -> None:
    moved = attempt(simulator, Origin(23, 0, 0, displaced=0.08), NOISE, record=False)
    again = attempt(simulator, Origin(23, 0, 0, displaced=0.08), NOISE, record=False)
    assert moved.success and moved.steps == again.steps != tried.steps
    simulator.reset(init_states(TASK)[23], 0)
    plain = Scene(simulator)
    start = plain.position(plain.object)
    _reset(simulator, Origin(23, 0, 0, displaced=0.08))
    shift = Scene(simulator).position(plain.object) - start
    assert 0.01 < np.abs(shift[:2]).max() < 0.09 and abs(shift[2]) < 0.005
