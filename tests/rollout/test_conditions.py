"""A condition changes one thing, for one episode."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from pipeline.libero.paraphrase import paraphrases
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Observation, Simulator
from pipeline.libero.suites import Task, init_states, tasks
from pipeline.rollout.baselines import RandomAgent
from pipeline.rollout.conditions import alter_agent, alter_world, baseline
from pipeline.rollout.episode import EpisodeSettings, run_episode
from pipeline.rollout.results import EpisodeRecord

SETTINGS = EpisodeSettings(first_init_state=0, max_steps=8, timeout_s=120.0, seed=3, sim_seed=0)


class Attentive(RandomAgent):
    """Random, and notes what it is shown and told."""

    def __init__(self) -> None:
        super().__init__(n_action_steps=4, cameras=("agentview", "eye_in_hand"))
        self.seen: list[Observation] = []
        self.told = ""

    def reset(self, task: Task, seed: int) -> None:
        super().reset(task, seed)
        self.told = task.language

    def act(self, obs: Observation) -> np.ndarray:
        self.seen.append(obs)
        return super().act(obs)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    sim = Sim(None, "fast", "auto", 64, 3, 0)
    with Simulator(tasks("libero_spatial", [0])[0], sim) as made:
        yield made


@pytest.mark.sim
def test_blank_cameras_show_black_and_are_not_drawn(simulator: Simulator) -> None:
    agent = Attentive()
    blank = alter_agent(agent, "blank_cameras", None, simulator._sim)
    record = run_episode(simulator, blank, simulator.task, 0, replace(SETTINGS, condition="blank_cameras"))
    assert (record.policy_calls, record.renders, record.steps) == (2, 0, 8)
    for obs in agent.seen:
        assert set(obs.images) == {"agentview", "eye_in_hand"}
        assert all(image.shape == (64, 64, 3) and not image.any() for image in obs.images.values())
        assert np.abs(obs.joint_pos).max() > 0.1, "it still feels its arm"


def test_a_blanked_camera_has_no_depth_either(simulator: Simulator) -> None:
    agent = Attentive()
    agent.cameras = ("agentview", "agentview_depth")
    blank = alter_agent(agent, "blank_cameras", None, simulator._sim)
    assert blank.cameras == ()
    run_episode(simulator, blank, simulator.task, 0, replace(SETTINGS, condition="blank_cameras"))
    (depth,) = agent.seen[0].depths.items()
    assert depth[0] == "agentview_depth" and depth[1].shape == (64, 64, 1) and depth[1].dtype == np.uint16
    assert not depth[1].any() and set(agent.seen[0].images) == {"agentview", "agentview_depth"}


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(("episode", "neighbour"), [(3, 4), (49, 48)])
def test_pictures_of_another_episode_are_the_next_ones(simulator: Simulator, episode: int, neighbour: int) -> None:
    agent = Attentive()
    plain = run_episode(simulator, agent, simulator.task, neighbour, SETTINGS)
    theirs = [obs.images["agentview"] for obs in agent.seen]
    own = run_episode(simulator, Attentive(), simulator.task, episode, SETTINGS)
    agent.seen.clear()
    record = run_episode(simulator, agent, simulator.task, episode, replace(SETTINGS, condition="other_episode"))
    shown = agent.seen[len(theirs) :]  # those before are the neighbour's own episode, run first
    for picture, obs in zip(theirs, shown, strict=True):
        np.testing.assert_array_equal(obs.images["agentview"], picture)
    np.testing.assert_array_equal(agent.seen[0].images["agentview"], theirs[0])
    assert record.final_state == own.final_state != plain.final_state, "random actions do not depend on pictures"
    assert (record.steps, record.policy_calls, record.renders) == (8, 2, 0)


def test_what_a_condition_is_compared_with() -> None:
    asked = {"blank_cameras": None, "displaced": 0.08, "displaced+blank_cameras": 0.08, "light+other_episode": 0.4}
    against = {name: baseline(name, asked) for name in asked}
    assert against == dict.fromkeys(asked, "plain") | {"displaced+blank_cameras": "displaced"}
    assert baseline("displaced+blank_cameras", asked | {"displaced+blank_cameras": 0.05}) == "plain", "another distance"
    several = {f"{name}={x}": x for name in ("displaced", "displaced+blank_cameras") for x in (0.04, 0.08)}
    assert baseline("displaced+blank_cameras=0.08", several) == "displaced=0.08"
    assert baseline("displaced=0.08", several) == "plain"


@pytest.mark.sim
@pytest.mark.slow
def test_two_conditions_at_once(simulator: Simulator) -> None:
    def run(condition: str, amount: float | None, episode: int = 3) -> tuple[list[Observation], EpisodeRecord]:
        agent = Attentive()
        settings = replace(SETTINGS, condition=condition, amount=amount)
        altered = alter_agent(agent, condition, None, simulator._sim)
        return agent.seen, run_episode(simulator, altered, simulator.task, episode, settings)

    seen, moved = run("displaced", 0.08)
    theirs, _ = run("displaced", 0.08, episode=4)
    blind, moved_blind = run("displaced+blank_cameras", 0.08)
    assert moved_blind.final_state == moved.final_state != run("blank_cameras", None)[1].final_state
    assert all(not image.any() for obs in blind for image in obs.images.values())
    swapped, moved_swapped = run("displaced+other_episode", 0.08)
    assert moved_swapped.final_state == moved.final_state
    for told, shown in zip(theirs, swapped[len(theirs) :], strict=True):
        np.testing.assert_array_equal(shown.images["agentview"], told.images["agentview"])
    assert (swapped[-1].images["agentview"] != seen[-1].images["agentview"]).any()


def test_another_instruction_is_the_next_tasks(task: Task, sim: Sim) -> None:
    last = tasks("libero_spatial", [9])[0]
    for told, expected in ((task, 1), (last, 0)):
        agent = Attentive()
        alter_agent(agent, "other_instruction", None, sim).reset(told, 0)
        assert agent.told == tasks("libero_spatial", [expected])[0].language


def test_a_paraphrase_says_the_same_in_words_held_out_from_training(task: Task, sim: Sim) -> None:
    told = set()
    for seed in range(20):
        agent = Attentive()
        alter_agent(agent, "paraphrased_instruction", None, sim).reset(task, seed)
        told.add(agent.told)
    bowl = "the black bowl between the plate and the ramekin"
    assert told == {
        f"get {bowl} and drop it on the plate",
        f"I want {bowl} on the plate",
        f"transfer {bowl} onto the plate",
    }
    assert not told & set(paraphrases(task.language))


def test_an_agent_under_other_conditions_is_left_alone(sim: Sim) -> None:
    agent = Attentive()
    assert all(
        alter_agent(agent, name, None, sim) is agent for name in ("plain", "light", "other_episode", "moved_camera")
    )


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(("condition", "amount"), [("light", 0.3), ("moved_camera", 0.05), ("displaced", 0.08)])
def test_the_world_is_altered_for_one_episode(simulator: Simulator, condition: str, amount: float) -> None:
    def look() -> dict[str, np.ndarray]:
        return simulator.observe().images

    state = init_states(simulator.task)[0]
    simulator.reset(state, 0)
    plain = look()
    alter_world(simulator, condition, amount, seed=1, sim_seed=0)
    altered = look()
    if condition == "light":
        assert altered["agentview"].mean() < 0.8 * plain["agentview"].mean()
        assert altered["eye_in_hand"].mean() < 0.8 * plain["eye_in_hand"].mean()
    else:
        changed = (np.abs(altered["agentview"].astype(int) - plain["agentview"]) > 20).any(-1).mean()
        assert changed > 0.03
    if condition == "moved_camera":
        drift = np.abs(altered["eye_in_hand"].astype(int) - plain["eye_in_hand"]).mean()
        assert drift < 1, "the wrist camera shows the same, but for 2 ms in which the arm settles"
    simulator.reset(state, 0)
    for camera, image in look().items():
        np.testing.assert_array_equal(image, plain[camera])
    alter_world(simulator, condition, amount, seed=1, sim_seed=0)
    np.testing.assert_array_equal(look()["agentview"], altered["agentview"])
    if condition != "light":  # which is the same for all
        simulator.reset(state, 0)
        alter_world(simulator, condition, amount, seed=2, sim_seed=0)
        assert (look()["agentview"] != altered["agentview"]).any()
