"""Agents and simulators that misbehave, importable by worker processes."""

from pathlib import Path

import numpy as np
import torch

from pipeline.libero.sim.simulator import Observation, Simulator
from pipeline.libero.suites import Task
from pipeline.rollout.agent import Unavailable
from pipeline.rollout.baselines import RandomAgent


class Odd(RandomAgent):
    """Random, but for its second call in an episode, which goes wrong.

    Args:
        what: nan, shape, raise, memory or server.
        episode_seeds: of the episodes in which it does; all if None.
    """

    def __init__(self, what: str, episode_seeds: tuple[int, ...] | None = None) -> None:
        super().__init__(n_action_steps=4)
        self.what = what
        self.episode_seeds = episode_seeds
        self.calls = 0
        self.odd = True

    def reset(self, task: Task, seed: int) -> None:
        super().reset(task, seed)
        self.calls = 0
        self.odd = self.episode_seeds is None or seed in self.episode_seeds

    def act(self, obs: Observation) -> np.ndarray:
        actions = super().act(obs)
        self.calls += 1
        if self.calls != 2 or not self.odd:
            return actions
        return self._misbehave(actions)

    def _misbehave(self, actions: np.ndarray) -> np.ndarray:
        if self.what == "raise":
            raise RuntimeError("no idea")
        if self.what == "server":
            raise Unavailable("the server is full")
        if self.what == "memory":
            raise torch.OutOfMemoryError("a GPU is full")
        if self.what == "nan":
            actions[1, 3] = np.nan
            return actions
        assert self.what == "shape"
        return actions[:, :6]


class Clock:
    """Time as a test has it."""

    now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class Slow(RandomAgent):
    """Random, and takes so many seconds of a clock for each call."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__(n_action_steps=4)
        self.clock = clock
        self.seconds = seconds

    def act(self, obs: Observation) -> np.ndarray:
        self.clock.pass_by(self.seconds)
        return super().act(obs)


class Scripted(Simulator):
    """The simulator, but solved after control step `solved_at`, or broken in control step `crash_at`.

    With a file `once`, which is made then, it breaks only if that was not there.
    """

    solved_at = crash_at = 0
    count = 0
    once: Path | None = None

    def reset(self, init_state: np.ndarray | None, seed: int) -> None:
        self.count = -1000  # settling takes steps, too
        super().reset(init_state, seed)
        self.count = 0

    def step(self, action: np.ndarray) -> bool:
        self.count += 1
        if self.count == self.crash_at and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            raise RuntimeError("the simulator is unstable")
        return super().step(action) or self.count == self.solved_at
