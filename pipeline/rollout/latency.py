"""A policy that takes time: its actions come some control steps after the observation that they are for."""

import math

import numpy as np

from pipeline.errors import ConfigError
from pipeline.libero.conventions import CONTROL_HZ
from pipeline.libero.sim.simulator import NO_OP, Observation
from pipeline.libero.suites import Task
from pipeline.rollout.agent import Agent


def late_steps(seconds: float) -> int:
    """Return the control steps in which no new action comes."""
    return math.ceil(seconds * CONTROL_HZ - 1e-9)


def check_latency(seconds: float, n_action_steps: int, horizon: int | None = None) -> None:
    """Refuse a latency in which a policy cannot go on with the chunk before.

    Args:
        horizon: actions of a chunk; None if it is not known yet.

    Raises:
        ConfigError: a chunk would come after the next one is asked for, or chunks are too short.
    """
    late = late_steps(seconds)
    if late > n_action_steps:
        raise ConfigError(
            f"eval_libero.conditions: a latency of {seconds:g} s is {late} control steps, but a chunk is asked for "
            f"every {n_action_steps}. Carry out more actions of each: eval_libero.n_action_steps"
        )
    if horizon is not None and horizon < n_action_steps + late:
        raise ConfigError(_too_short(late, n_action_steps))


def _too_short(late: int, n_action_steps: int) -> str:
    return (
        f"eval_libero.conditions: chunks of the policy are too short to go on for {late} steps after {n_action_steps} "
        "actions. Carry out fewer of each: eval_libero.n_action_steps"
    )


class LatencyAgent:
    """An agent whose chunks come late, by whole control steps.

    Waiting, the robot stands still with its gripper as it is. In the meantime, that is asynchronously, it goes on with
    the chunk before, and of the new one leaves out the actions whose time has passed.

    Args:
        seconds: from an observation to its first action.
        in_the_meantime: whether the robot goes on.

    Raises:
        ConfigError: it goes on, and a chunk would come after the next one is asked for; of `act`: chunks are too short.
    """

    def __init__(self, agent: Agent, seconds: float, in_the_meantime: bool) -> None:
        self.cameras = agent.cameras
        self._agent = agent
        self._late = late_steps(seconds)
        self._goes_on = in_the_meantime
        self._count = agent.n_action_steps
        self.n_action_steps = self._count if in_the_meantime else self._count + self._late
        if in_the_meantime:
            check_latency(seconds, self._count)
        self._waiting = NO_OP
        self._rest: np.ndarray | None = None

    def reset(self, task: Task, seed: int) -> None:
        self._agent.reset(task, seed)
        self._waiting, self._rest = NO_OP, None

    def act(self, obs: Observation) -> np.ndarray:
        chunk = np.asarray(self._agent.act(obs), np.float64)
        still = np.repeat(self._waiting[None], self._late, axis=0)
        if not self._goes_on:
            played = np.concatenate([still, chunk[: self._count]])
        elif self._rest is None:  # the first chunk of an episode is waited for
            played, self._rest = self._joined(still, chunk)
        else:
            played, self._rest = self._joined(self._rest[: self._late], chunk[self._late :])
        self._waiting = np.array([*NO_OP[:-1], played[-1, -1]])
        return played

    def _joined(self, first: np.ndarray, then: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the actions until the next observation, and those that follow in the chunk."""
        left = self._count - self._late
        if len(first) < self._late or len(then) < self._count:
            raise ConfigError(_too_short(self._late, self._count))
        return np.concatenate([first, then[:left]]), then[left:]
