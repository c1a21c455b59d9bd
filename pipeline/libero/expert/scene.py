"""What the expert may ask of the simulator: the goal, where objects and hand are, what touches what."""

from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.libero.sim.simulator import Simulator

GRIP_SITE = "gripper0_grip_site"
ARM_JOINTS = tuple(f"robot0_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("gripper0_finger_joint1", "gripper0_finger_joint2")


class Scene:
    """Privileged view of a Simulator, valid until its next reset. Positions in metres, world frame.

    Raises:
        DataError: the goal is not "put this movable object on that one".
    """

    def __init__(self, sim: Simulator) -> None:
        self.model, self.data, self._env = sim.model, sim.data, sim.env
        goals = self._env.parsed_problem["goal_state"]
        if len(goals) != 1 or goals[0][0].lower() != "on" or goals[0][2] not in self._env.obj_body_id:
            raise DataError(
                f"{sim.task.name}: the scripted expert can only put one object on another, and the goal is {goals}. "
                "Use demos.source official or path for this task."
            )
        _, self.object, self.target = goals[0]
        model = self.model
        self.grip_site = model.site(GRIP_SITE).id
        self.arm_qpos = np.array([model.joint(name).qposadr[0] for name in ARM_JOINTS])
        self.arm_dof = np.array([model.joint(name).dofadr[0] for name in ARM_JOINTS])
        self.arm_range = np.array([model.joint(name).range for name in ARM_JOINTS])
        self.finger_qpos = np.array([model.joint(name).qposadr[0] for name in FINGER_JOINTS])
        names = [model.body(i).name for i in range(model.nbody)]
        robot = [i for i, name in enumerate(names) if name.startswith(("robot0_", "gripper0_"))]
        self.robot_geoms: np.ndarray = np.isin(model.geom_bodyid, robot)

    def position(self, name: str) -> np.ndarray:
        """Return the origin (3,) of an object."""
        return self.data.xpos[self._env.obj_body_id[name]].copy()

    def rotation(self, name: str) -> np.ndarray:
        """Return the rotation matrix (3, 3) of an object."""
        return self.data.xmat[self._env.obj_body_id[name]].reshape(3, 3).copy()

    @property
    def hand(self) -> np.ndarray:
        """The point (3,) between the finger tips."""
        return self.data.site_xpos[self.grip_site].copy()

    @property
    def hand_rotation(self) -> np.ndarray:
        """Its rotation matrix (3, 3); the fingers open along the second column."""
        return self.data.site_xmat[self.grip_site].reshape(3, 3).copy()

    @property
    def finger_gap(self) -> float:
        """Distance between the fingers; 0.08 is wide open."""
        return float(self.data.qpos[self.finger_qpos[0]] - self.data.qpos[self.finger_qpos[1]])

    @property
    def elbow(self) -> float:
        """Joint 4, radians: -0.07 is the limit, with the arm stretched out."""
        return float(self.data.qpos[self.arm_qpos[3]])

    def touching(self, a: str, b: str) -> bool:
        """Return whether two objects are in contact."""
        env: Any = self._env
        return bool(env.check_contact(env.get_object(a), env.get_object(b)))
