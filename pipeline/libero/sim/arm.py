"""The robot in a simulator: where its joints, its hand and its fingers are."""

import numpy as np

from pipeline.libero.sim.simulator import Simulator

GRIP_SITE = "gripper0_grip_site"
JOINTS = tuple(f"robot0_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("gripper0_finger_joint1", "gripper0_finger_joint2")
OPEN_GAP = 0.08  # metres between the fingers when wide open


class Arm:
    """Privileged view of a simulator's robot, valid until its next reset. Positions in metres, world frame."""

    def __init__(self, sim: Simulator) -> None:
        self.model, self.data = sim.model, sim.data
        model = self.model
        self.grip_site = model.site(GRIP_SITE).id
        self.qpos = np.array([model.joint(name).qposadr[0] for name in JOINTS])
        self.dof = np.array([model.joint(name).dofadr[0] for name in JOINTS])
        self.range = np.array([model.joint(name).range for name in JOINTS])
        self.finger_qpos = np.array([model.joint(name).qposadr[0] for name in FINGER_JOINTS])
        names = [model.body(i).name for i in range(model.nbody)]
        robot = [i for i, name in enumerate(names) if name.startswith(("robot0_", "gripper0_"))]
        self.geoms: np.ndarray = np.isin(model.geom_bodyid, robot)

    @property
    def base(self) -> np.ndarray:
        """The origin (3,) of the robot's base."""
        return self.data.body("robot0_base").xpos.copy()

    @property
    def hand(self) -> np.ndarray:
        """The point (3,) between the finger tips."""
        return self.data.site_xpos[self.grip_site].copy()

    @property
    def hand_rotation(self) -> np.ndarray:
        """Its rotation matrix (3, 3); the fingers open along the first column."""
        return self.data.site_xmat[self.grip_site].reshape(3, 3).copy()

    @property
    def finger_gap(self) -> float:
        """Distance between the fingers, from 0 to OPEN_GAP."""
        return float(self.data.qpos[self.finger_qpos[0]] - self.data.qpos[self.finger_qpos[1]])

    @property
    def elbow(self) -> float:
        """Joint 4, radians: -0.07 is the limit, with the arm stretched out."""
        return float(self.data.qpos[self.qpos[3]])
