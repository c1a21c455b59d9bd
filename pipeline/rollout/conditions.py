"""What is changed in an evaluation to see what the policy uses: the same init states and seeds, something otherwise."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from pipeline.libero.depth import is_depth
from pipeline.libero.paraphrase import say_otherwise
from pipeline.libero.settings import Sim
from pipeline.libero.sim.displacement import displaced
from pipeline.libero.sim.simulator import CAMERAS, Observation, Simulator
from pipeline.libero.suites import Task, tasks
from pipeline.rollout.agent import Agent
from pipeline.rollout.latency import LatencyAgent
from pipeline.rollout.settings import PLAIN, condition_parts

BLANK = "blank_cameras"
OTHER_EPISODE = "other_episode"
LATENCY, ASYNCHRONOUS = "latency", "latency_asynchronous"
OF_THE_AGENT = (BLANK, OTHER_EPISODE, "other_instruction", "paraphrased_instruction", LATENCY, ASYNCHRONOUS)
"""The conditions that change what an agent is given, or when; the others change the scene."""


def without(condition: str, part: str) -> str:
    """Return the condition that changes the rest."""
    return "+".join(p for p in condition_parts(condition) if p != part) or PLAIN


def baseline(condition: str, asked: Mapping[str, float | None]) -> str:
    """Return the evaluation that `condition` is compared with: the same scenes, seen and told as they are.

    displaced+blank_cameras is compared with displaced; all else, and if that is not asked for, with the plain one.
    """
    scene = "+".join(part for part in condition_parts(condition) if part not in OF_THE_AGENT)
    others = (name for name, amount in asked.items() if name != condition and amount == asked[condition])
    return next((name for name in others if scene and condition_parts(name) == condition_parts(scene)), PLAIN)


def alter_agent(agent: Agent, condition: str, amount: float | None, sim: Sim) -> Agent:
    """Return the agent as this condition lets it see, hear and act.

    Raises:
        ConfigError: see `LatencyAgent`.
    """
    for part in condition_parts(condition):
        if part == BLANK:
            agent = BlankCameraAgent(agent, sim.image_size)
        elif part == "other_instruction":
            agent = OtherWordsAgent(agent, next_instruction)
        elif part == "paraphrased_instruction":
            agent = OtherWordsAgent(agent, paraphrase)
        elif part in (LATENCY, ASYNCHRONOUS):
            agent = LatencyAgent(agent, amount or 0.0, part == ASYNCHRONOUS)
    return agent


def alter_world(simulator: Simulator, condition: str, amount: float | None, seed: int, sim_seed: int) -> None:
    """Change what a reset has set up; the next reset undoes it.

    Args:
        amount: see `CONDITIONS`.
        seed: of the episode: what is drawn here is drawn alike for every policy.
        sim_seed: that the simulator was reset with.
    """
    scene = set(condition_parts(condition)) - set(OF_THE_AGENT)
    if amount is None or not scene:
        return
    rng = np.random.default_rng(seed)
    model = simulator.model
    (altered,) = scene
    if altered == "displaced":
        simulator.reset(displaced(simulator, amount, rng), sim_seed)
    elif altered == "light":
        for lights in (model.light_ambient, model.light_diffuse, model.light_specular):
            lights *= amount
    elif altered == "moved_camera":
        direction = rng.normal(size=3)
        model.cam_pos[model.camera(CAMERAS["agentview"]).id] += amount * direction / np.linalg.norm(direction)
        simulator.set_state(simulator.state())  # which samples the cameras' poses again


class BlankCameraAgent:
    """An agent whose cameras show black, and measure no depth. They are not drawn."""

    cameras: tuple[str, ...] = ()

    def __init__(self, agent: Agent, image_size: int) -> None:
        self.n_action_steps = agent.n_action_steps
        self._agent = agent
        self._black = dict.fromkeys(agent.cameras, np.zeros((image_size, image_size, 3), np.uint8))
        self._unmeasured = dict.fromkeys(
            filter(is_depth, agent.cameras), np.zeros((image_size, image_size, 1), np.uint16)
        )

    def reset(self, task: Task, seed: int) -> None:
        self._agent.reset(task, seed)

    def act(self, obs: Observation) -> np.ndarray:
        return self._agent.act(replace(obs, images=self._black, depths=self._unmeasured))


class FixedImageAgent:
    """An agent that gets the pictures of these observations, one a policy call, and then the last of them for ever."""

    cameras: tuple[str, ...] = ()

    def __init__(self, agent: Agent, shown: list[Observation]) -> None:
        self.n_action_steps = agent.n_action_steps
        self._agent = agent
        self._shown = shown
        self._calls = 0

    def reset(self, task: Task, seed: int) -> None:
        self._agent.reset(task, seed)
        self._calls = 0

    def act(self, obs: Observation) -> np.ndarray:
        shown = self._shown[min(self._calls, len(self._shown) - 1)]
        self._calls += 1
        return self._agent.act(replace(obs, images=shown.images, depths=shown.depths))


class OtherWordsAgent:
    """An agent that is told something else than the task's instruction.

    Args:
        say: from task and seed of the episode to what is told.
    """

    def __init__(self, agent: Agent, say: Callable[[Task, int], str]) -> None:
        self.cameras = agent.cameras
        self.n_action_steps = agent.n_action_steps
        self._agent = agent
        self._say = say

    def reset(self, task: Task, seed: int) -> None:
        self._agent.reset(replace(task, language=self._say(task, seed)), seed)

    def act(self, obs: Observation) -> np.ndarray:
        return self._agent.act(obs)


def next_instruction(task: Task, seed: int) -> str:
    """Return the instruction of the suite's next task."""
    every = tasks(task.suite)
    return every[(every.index(task) + 1) % len(every)].language


def paraphrase(task: Task, seed: int) -> str:
    """Return the same instruction in other words, of those that no text encoder was trained on."""
    return say_otherwise(task.language, np.random.default_rng(seed), held_out=True)
