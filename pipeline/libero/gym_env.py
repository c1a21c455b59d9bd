"""The same simulator under gymnasium's API, for training loops, wrappers and policies that other people wrote.

    sim = load("params.yaml").sim
    gymnasium.make("pipeline.libero.gym_env:Libero-v0", sim=sim, suite="libero_spatial", task=0)

Episodes are those of `pipeline.rollout.episode`, to the bit: the same order of seeding, reset, init state and settling,
the same limits. The cameras are drawn at every step, as the API wants it; the engine, which draws for a
policy call only, is faster (benchmarks/results/eval.json).
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from pipeline.libero.conventions import ACTION_DIM, CONTROL_HZ
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import CAMERAS, Observation, Simulator
from pipeline.libero.suites import SUITES, check_row, init_states, tasks

STATE_BOUNDS = {
    "joint_pos": [6.3] * 7,  # radians
    "ee_pose": [3.0] * 3 + [1.01] * 4,  # metres, and the parts of a unit quaternion
    "gripper": [0.1] * 2,  # metres
    "ee_wrench": [1e5] * 6,  # N, N m
}
"""What no state of this robot exceeds."""


class LiberoEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One LIBERO task.

    Observations: each camera's image (S, S, 3) uint8, upright; joint_pos (7,) radians, ee_pose (7,) metres and
    quaternion (xyzw, q_x >= 0), gripper (2,) metres, ee_wrench (6,) N and N m, float32. Actions: (7,) in [-1, 1] (see
    `Simulator.step`). The reward is 1 at success, which terminates the episode; the suite's usual number of steps
    truncates it. `info` has "success", "init_row" and "language".

    Args:
        sim: section `sim` of params.yaml. Its seed is that of every reset, as in published evaluations.
        first_init_state: row of the task's init states of the first episode; each reset takes the next, after the last
            the first of all.
        max_steps: None is the suite's usual limit.

    Raises:
        PipelineError: no such suite, task, camera or row; no assets; no OpenGL.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(
        self,
        sim: Sim,
        suite: str,
        task: int,
        cameras: tuple[str, ...] = tuple(CAMERAS),
        first_init_state: int = 0,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = tasks(suite, [task])[0]
        self.render_mode = render_mode
        self.max_steps = SUITES[suite].max_steps if max_steps is None else max_steps
        self._rows = init_states(self.task)
        check_row(self.task, first_init_state, len(self._rows))
        self._first = self._next = first_init_state
        self._row = self._steps = 0
        self._sim_seed = sim.seed
        self._simulator = Simulator(self.task, sim, cameras)
        picture = spaces.Box(0, 255, (sim.image_size, sim.image_size, 3), np.uint8)
        bounds = {name: np.array(bound, np.float32) for name, bound in STATE_BOUNDS.items()}
        state = {name: spaces.Box(-bound, bound, dtype=np.float32) for name, bound in bounds.items()}
        self.observation_space: Any = spaces.Dict({**dict.fromkeys(cameras, picture), **state})
        self.action_space = spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of the simulator from now on, in place of sim.seed; the rows start over from the first.
            options: {"init_row": row} for one of the task's init states.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._sim_seed, self._next = seed, self._first
        self._row = (options or {}).get("init_row", self._next)
        check_row(self.task, self._row, len(self._rows))
        self._next = (self._row + 1) % len(self._rows)
        self._steps = 0
        self._simulator.reset(self._rows[self._row], self._sim_seed)
        return self._observe(), self._info(success=False)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Carry out one action, for 50 ms."""
        success = self._simulator.step(action)
        self._steps += 1
        truncated = not success and self._steps >= self.max_steps
        return self._observe(), float(success), success, truncated, self._info(success)

    def render(self) -> np.ndarray | None:
        """Return the first camera's picture, if render_mode is "rgb_array"."""
        if self.render_mode is None:
            return None
        return self._simulator.observe().images[self._simulator.cameras[0]]

    def close(self) -> None:
        """Free the simulator."""
        self._simulator.close()

    def _observe(self) -> dict[str, np.ndarray]:
        obs = self._simulator.observe()
        return {**obs.images, **{name: getattr(obs, name) for name in STATE_BOUNDS}}

    def _info(self, success: bool) -> dict[str, Any]:
        return {"success": success, "init_row": self._row, "language": self.task.language}


def to_observation(obs: dict[str, np.ndarray]) -> Observation:
    """Return what LiberoEnv gave as what our agents take."""
    images = {name: value for name, value in obs.items() if name not in STATE_BOUNDS}
    return Observation(obs["joint_pos"], obs["ee_pose"], obs["gripper"], obs["ee_wrench"], images)


gymnasium.register("Libero-v0", entry_point=f"{__name__}:LiberoEnv")
