"""What is changed in an evaluation to see what the policy uses: the same init states and seeds, one thing otherwise."""

from dataclasses import replace

import numpy as np

from pipeline.config import PLAIN, Sim
from pipeline.libero.displacement import displaced
from pipeline.libero.simulator import CAMERAS, Observation, Simulator
from pipeline.libero.suites import Task, tasks
from pipeline.rollout.agent import Agent

OF_THE_AGENT = ("blank_cameras", "other_instruction")
"""The conditions that change what an agent is given; the others change the scene."""


def alter_agent(agent: Agent, condition: str, sim: Sim) -> Agent:
    """Return the agent as this condition lets it see and hear."""
    if condition == "blank_cameras":
        return Blank(agent, sim.image_size)
    if condition == "other_instruction":
        return OtherInstruction(agent)
    return agent


def alter_world(simulator: Simulator, condition: str, amount: float | None, seed: int, sim_seed: int) -> None:
    """Change what a reset has set up; the next reset undoes it.

    Args:
        amount: see `pipeline.config.params.EvalLibero.conditions`.
        seed: of the episode: what is drawn here is drawn alike for every policy.
        sim_seed: that the simulator was reset with.
    """
    if condition == PLAIN or amount is None:
        return
    rng = np.random.default_rng(seed)
    model = simulator.model
    if condition == "displaced":
        simulator.reset(displaced(simulator, amount, rng), sim_seed)
    elif condition == "light":
        for lights in (model.light_ambient, model.light_diffuse, model.light_specular):
            lights *= amount
    elif condition == "moved_camera":
        direction = rng.normal(size=3)
        model.cam_pos[model.camera(CAMERAS["agentview"]).id] += amount * direction / np.linalg.norm(direction)
        simulator.set_state(simulator.state())  # which samples the cameras' poses again


class Blank:
    """An agent whose cameras show black. Nothing is drawn for it."""

    cameras: tuple[str, ...] = ()

    def __init__(self, agent: Agent, image_size: int) -> None:
        self.execute = agent.execute
        self._agent = agent
        black = np.zeros((image_size, image_size, 3), np.uint8)
        self._images = dict.fromkeys(agent.cameras, black)

    def reset(self, task: Task, seed: int) -> None:
        self._agent.reset(task, seed)

    def act(self, obs: Observation) -> np.ndarray:
        return self._agent.act(replace(obs, images=self._images))


class OtherInstruction:
    """An agent that is told to do the next task of the suite."""

    def __init__(self, agent: Agent) -> None:
        self.cameras = agent.cameras
        self.execute = agent.execute
        self._agent = agent

    def reset(self, task: Task, seed: int) -> None:
        every = tasks(task.suite)
        other = every[(every.index(task) + 1) % len(every)]
        self._agent.reset(replace(task, language=other.language), seed)

    def act(self, obs: Observation) -> np.ndarray:
        return self._agent.act(obs)
