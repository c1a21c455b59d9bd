"""What the expert may ask of the simulator: the goal, where objects and hand are, what touches what."""

from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.libero.sim.arm import Arm
from pipeline.libero.sim.simulator import Simulator


class Scene(Arm):
    """Privileged view of a Simulator, valid until its next reset. Positions in metres, world frame.

    Raises:
        DataError: the goal is not "put this movable object on that one".
    """

    def __init__(self, sim: Simulator) -> None:
        super().__init__(sim)
        self._env: Any = sim.env
        goals = self._env.parsed_problem["goal_state"]
        if len(goals) != 1 or goals[0][0].lower() != "on" or goals[0][2] not in self._env.obj_body_id:
            raise DataError(
                f"{sim.task.name}: the scripted expert can only put one object on another, and the goal is {goals}. "
                "Use demos.source official or path for this task."
            )
        _, self.object, self.target = goals[0]

    def position(self, name: str) -> np.ndarray:
        """Return the origin (3,) of an object."""
        return self.data.xpos[self._env.obj_body_id[name]].copy()

    def rotation(self, name: str) -> np.ndarray:
        """Return the rotation matrix (3, 3) of an object."""
        return self.data.xmat[self._env.obj_body_id[name]].reshape(3, 3).copy()

    def touching(self, a: str, b: str) -> bool:
        """Return whether two objects are in contact."""
        env: Any = self._env
        return bool(env.check_contact(env.get_object(a), env.get_object(b)))
