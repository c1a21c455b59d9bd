"""Agents whose success is known beforehand: a harness in which they do otherwise is broken, and is seen to be at once.

noop and random solve next to nothing; a demonstration replayed, and the expert that records them, next to everything.
"""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipeline.errors import DataError
from pipeline.libero.demos.read import Demo, Motion, demo_file, read_motion, scan
from pipeline.libero.expert import Expert, Scene
from pipeline.libero.sim.simulator import NO_OP, Observation, Simulator
from pipeline.libero.suites import Task


class NoopAgent:
    """Holds still with an open gripper: succeeds where the harness is wrong, or the task is solved at the start."""

    cameras: tuple[str, ...] = ()

    def __init__(self, n_action_steps: int = 8) -> None:
        self.n_action_steps = n_action_steps

    def reset(self, task: Task, seed: int) -> None:
        pass

    def act(self, obs: Observation) -> Float[np.ndarray, "H 7"]:
        return np.tile(NO_OP, (self.n_action_steps, 1))


class RandomAgent:
    """Uniform actions in [-1, 1]: the floor that a policy has to rise from.

    Args:
        cameras: drawn for each policy call, to no purpose but a test's or a benchmark's.
    """

    def __init__(self, n_action_steps: int = 8, cameras: tuple[str, ...] = ()) -> None:
        self.n_action_steps = n_action_steps
        self.cameras = cameras
        self._rng = np.random.default_rng(0)

    def reset(self, task: Task, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, obs: Observation) -> Float[np.ndarray, "H 7"]:
        return self._rng.uniform(-1, 1, (self.n_action_steps, 7)).astype(np.float32)


class ExpertAgent:
    """The scripted expert, which sees the simulator's state and moves step by step: what the harness lets one reach."""

    cameras: tuple[str, ...] = ()
    n_action_steps = 1

    def __init__(self) -> None:
        self._seed = 0
        self._expert: Expert | None = None

    def reset(self, task: Task, seed: int) -> None:
        self._seed = seed

    def begin(self, simulator: Simulator, episode: int) -> None:
        self._expert = Expert(Scene(simulator), np.random.default_rng(self._seed), diversity=0.0)

    def act(self, obs: Observation) -> Float[np.ndarray, "1 7"]:
        if self._expert is None:
            raise RuntimeError("begin() comes before act()")
        return (NO_OP if self._expert.done else self._expert.act().action)[None]


class ReplayAgent:
    """Demonstration i of a task in episode i: its actions, from its own initial state, among its own fixtures.

    Args:
        root: directory that holds `<suite>/<task>_demo.hdf5`.
    """

    cameras: tuple[str, ...] = ()

    def __init__(self, root: Path, n_action_steps: int = 8) -> None:
        self.n_action_steps = n_action_steps
        self._root = root
        self._task: Task | None = None
        self._demos: list[Demo] = []  # of that task
        self._motion: Motion | None = None
        self._step = 0

    def reset(self, task: Task, seed: int) -> None:
        if task != self._task:
            self._demos, _ = scan(self._root, task.suite, [task], cameras=())
        self._task = task
        self._step = 0

    def begin(self, simulator: Simulator, episode: int) -> None:
        if self._task is None:
            raise RuntimeError("reset() comes before begin()")
        if episode >= len(self._demos):
            path = demo_file(self._root, self._task)
            raise DataError(f"{path}: {len(self._demos)} demonstrations, none for {episode=}")
        self._motion = read_motion(self._demos[episode])
        simulator.place_fixtures(self._motion.model_xml)
        simulator.set_state(self._motion.initial_state)

    def act(self, obs: Observation) -> Float[np.ndarray, "H 7"]:
        if self._motion is None:
            raise RuntimeError("begin() comes before act()")
        actions = self._motion.actions[self._step : self._step + self.n_action_steps]
        self._step += self.n_action_steps
        return np.concatenate([actions, np.tile(NO_OP, (self.n_action_steps - len(actions), 1))])


def replay_identity(root: Path, tasks: tuple[Task, ...]) -> dict[str, str]:
    """Return the SHA-256 of each task's demonstrations. Raises DataError if a file is missing."""
    found = {}
    for task in tasks:
        path = demo_file(root, task)
        try:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise DataError(f"{path}: no demonstrations to replay. Make them: dvc repro demos") from None
    return found


def replayable(root: Path, tasks: tuple[Task, ...]) -> int:
    """Return how many demonstrations every one of these tasks has. Raises DataError if one has none."""
    counts = {task: len(scan(root, task.suite, [task], cameras=())[0]) for task in tasks}
    for task, count in counts.items():
        if not count:
            raise DataError(f"{demo_file(root, task)}: no usable demonstration to replay. See index.json beside it")
    return min(counts.values())
