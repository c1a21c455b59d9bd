"""Can the arm get there, and what would it bump into? Inverse kinematics on a copy of the simulator's state."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.libero.sim.arm import Arm

ITERATIONS = 25
TOLERANCE = 1e-3  # norm of (metres, radians)
DAMPING = 1e-4
MAX_JOINT_STEP = 0.2  # radians per iteration
LIMIT_MARGIN = 0.02  # radians kept from the joint limits
PENETRATION_IGNORED = 5e-4  # metres; resting contacts penetrate by less


def above(height: float) -> np.ndarray:
    """Return the offset (3,) of a point `height` metres above another."""
    return np.array([0.0, 0.0, height])


def yaw(angle: float) -> np.ndarray:
    """Return the rotation matrix (3, 3) about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Return axis * angle (3,) of a rotation matrix (3, 3), angle in [0, pi]."""
    import mujoco  # late: importing it fixes the OpenGL backend, which the Simulator chooses

    quat, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quat, rotation.flatten())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector


@dataclass(frozen=True)
class Reach:
    """How well a sequence of hand poses can be reached.

    Attributes:
        penetration: metres by which the robot would be inside other things, summed over contacts and poses.
        error: worst distance from a pose, norm of (metres, radians).
        elbow: joint 4 at its straightest, radians.
    """

    penetration: float
    error: float
    elbow: float


class Kinematics:
    """Inverse kinematics by damped least squares from the arm's present pose, fingers open."""

    def __init__(self, arm: Arm) -> None:
        import mujoco

        self._mujoco = mujoco
        self._arm = arm
        self._scratch = mujoco.MjData(arm.model)

    def reach(self, positions: Sequence[np.ndarray], rotation: np.ndarray) -> Reach:
        """Follow hand positions (3,) one after the other with this rotation (3, 3)."""
        arm, scratch = self._arm, self._scratch
        self._begin()
        penetration, error, elbow = 0.0, 0.0, -np.inf
        for position in positions:
            error = max(error, self._solve(position, rotation))
            elbow = max(elbow, float(scratch.qpos[arm.qpos[3]]))
            penetration += self._penetration()
        return Reach(penetration, error, elbow)

    def joints(self, position: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the joints (7,), radians, that bring the hand to a pose, and the error that is left, as in Reach."""
        self._begin()
        error = self._solve(position, rotation)
        return self._scratch.qpos[self._arm.qpos].copy(), error

    def _begin(self) -> None:
        self._scratch.qpos[:] = self._arm.data.qpos
        self._scratch.qpos[self._arm.finger_qpos] = [0.04, -0.04]

    def _solve(self, position: np.ndarray, rotation: np.ndarray) -> float:
        """Move the copy's arm to the pose; return the error that is left."""
        mj, arm, scratch = self._mujoco, self._arm, self._scratch
        low, high = arm.range[:, 0] + LIMIT_MARGIN, arm.range[:, 1] - LIMIT_MARGIN
        jacobian = np.zeros((6, arm.model.nv))
        for _ in range(ITERATIONS):
            mj.mj_kinematics(arm.model, scratch)
            mj.mj_comPos(arm.model, scratch)
            turn = rotation_vector(rotation @ scratch.site_xmat[arm.grip_site].reshape(3, 3).T)
            error = np.concatenate([position - scratch.site_xpos[arm.grip_site], turn])
            if np.linalg.norm(error) < TOLERANCE:
                break
            mj.mj_jacSite(arm.model, scratch, jacobian[:3], jacobian[3:], arm.grip_site)
            of_arm = jacobian[:, arm.dof]
            step = of_arm.T @ np.linalg.solve(of_arm @ of_arm.T + DAMPING * np.eye(6), error)
            joints = scratch.qpos[arm.qpos] + np.clip(step, -MAX_JOINT_STEP, MAX_JOINT_STEP)
            scratch.qpos[arm.qpos] = np.clip(joints, low, high)
        return float(np.linalg.norm(error))

    def _penetration(self) -> float:
        arm, scratch = self._arm, self._scratch
        self._mujoco.mj_fwdPosition(arm.model, scratch)
        robot = arm.geoms
        depths = [
            -contact.dist
            for contact in scratch.contact[: scratch.ncon]
            if robot[contact.geom1] != robot[contact.geom2] and contact.dist < -PENETRATION_IGNORED
        ]
        return float(sum(depths))
