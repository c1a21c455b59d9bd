"""Put the robot into random poses: anywhere, over a thing as to take it, or with a thing in its hand on its way."""

import numpy as np

from pipeline.libero.sim.arm import OPEN_GAP, Arm
from pipeline.libero.sim.kinematics import Kinematics, yaw
from pipeline.libero.sim.simulator import Simulator
from pipeline.scenes.arrange import about_z
from pipeline.scenes.things import Things

ANYWHERE, OVER_A_THING = 0.3, 0.35  # shares of the poses; in the others the hand holds something
HEIGHTS_M = (0.0, 0.35)  # of the hand above the table
AHEAD_M, SIDE_M = (0.3, 0.8), 0.36  # of the hand, from the base
TURN, TILT = np.pi / 2, 0.15  # radians
OVER_M = 0.03
WIDEST_M = 0.036  # half of what the fingers get around; wider things are held by their rim
RIM_M = 0.012  # between the fingers then
TOO_LARGE_M = 0.11
DEPTH_M = (0.008, 0.03)  # of the finger tips below the top of what they hold
OVERLAP_M = 0.003
TRIES = 30
REACHED = 0.01  # of Reach.error


class Poser:
    """Poses one simulator's robot. Valid until its next reset; takes things as they lie when a pose is asked for."""

    def __init__(self, sim: Simulator) -> None:
        self._sim = sim
        self._things = Things(sim)
        self._arm = Arm(sim)
        self._kinematics = Kinematics(self._arm)
        self._rest = self._arm.hand_rotation
        self._start = sim.data.qpos[self._arm.qpos].copy()

    def pose(self, surface: float, rng: np.random.Generator) -> int:
        """Bring the robot into a pose that touches nothing but what it holds.

        Args:
            surface: height of the table, metres.

        Returns:
            The number of the thing that it holds, -1 for none. What was taken lies where the hand is.
        """
        import mujoco

        data = self._sim.data
        before = data.qpos.copy()
        for _ in range(TRIES):
            data.qpos[:] = before
            data.qpos[self._arm.qpos] = self._start
            mujoco.mj_fwdPosition(self._sim.model, data)
            kind = rng.random()
            held = -1
            if kind < ANYWHERE:
                self._anywhere(surface, rng)
            elif kind < ANYWHERE + OVER_A_THING:
                self._over_a_thing(rng)
            else:
                held = self._holding(surface, rng)
            if self._fits(held):
                break
        else:
            data.qpos[:] = before
            data.qpos[self._arm.qpos] = self._start
            held = -1
        data.qvel[:] = 0
        self._sim.set_state(self._sim.state())
        return held

    def _anywhere(self, surface: float, rng: np.random.Generator) -> None:
        tilt = rotation_about(rng.normal(size=3) * [1, 1, 0], rng.uniform(-TILT, TILT))
        self._reach(self._place(surface, rng), tilt @ yaw(rng.uniform(-TURN, TURN)) @ self._rest)
        self._fingers(rng.choice([0.0, OPEN_GAP, rng.uniform(0, OPEN_GAP)]))

    def _place(self, surface: float, rng: np.random.Generator) -> np.ndarray:
        base = self._arm.base
        ahead, side = rng.uniform(*AHEAD_M), rng.uniform(-SIDE_M, SIDE_M)
        return np.array([base[0] + ahead, base[1] + side, surface + rng.uniform(*HEIGHTS_M)])

    def _over_a_thing(self, rng: np.random.Generator) -> None:
        centre, half = self._things.boxes()
        i = rng.choice(self._within_reach(centre))
        place = centre[i] + [*rng.normal(0, OVER_M, 2), half[i, 2] + rng.uniform(-0.02, 0.2)]
        if half[i, :2].min() > WIDEST_M and rng.random() < 0.5:  # over the rim
            angle = rng.uniform(-np.pi, np.pi)
            place[:2] += half[i, :2].min() * np.array([np.cos(angle), np.sin(angle)])
        self._reach(place, yaw(rng.uniform(-TURN, TURN)) @ self._rest)
        self._fingers(OPEN_GAP if rng.random() < 0.7 else rng.uniform(0, OPEN_GAP))

    def _holding(self, surface: float, rng: np.random.Generator) -> int:
        """Move a thing into the hand, and the hand over another thing or anywhere; return the thing."""
        centre, half = self._things.boxes()
        there = self._within_reach(centre)
        carrying = set(self._things.supports()[0])  # what lies on a thing would be left hanging
        small = [
            i
            for i in there
            if self._things.things[i].qpos is not None and half[i, :2].max() < TOO_LARGE_M and i not in carrying
        ]
        if not small:
            return -1
        held = int(rng.choice(small))
        place = self._place(surface, rng)
        goals = [i for i in there if i != held]
        if goals and rng.random() < 0.6:
            goal = rng.choice(goals)
            place = centre[goal] + [*rng.normal(0, OVER_M, 2), half[goal, 2] + 2 * half[held, 2] + rng.uniform(0, 0.2)]
        return held if self._take(held, place, rng) else -1

    def _take(self, i: int, place: np.ndarray, rng: np.random.Generator) -> bool:
        """Bring the hand to a place and thing i between its fingers; return False if the hand does not get there."""
        import mujoco

        data = self._sim.data
        thing = self._things.things[i]
        assert thing.qpos is not None
        turn = rng.uniform(-TURN, TURN)
        if not self._reach(place, yaw(turn) @ self._rest):
            return False
        fingers = data.site_xmat[self._arm.grip_site].reshape(3, 3)[:, 0]
        own, size = data.xmat[thing.body].reshape(3, 3), self._things.size(i)
        sides = np.delete(np.arange(3), np.argmax(np.abs(own[2])))  # its axes that lie flat
        narrow = sides[np.argmin(size[sides])]
        pose = data.qpos[thing.qpos : thing.qpos + 7]
        angle = np.arctan2(fingers[1], fingers[0]) - np.arctan2(own[1, narrow], own[0, narrow])
        before = pose[3:].copy()
        mujoco.mju_mulQuat(pose[3:], about_z(angle), before)  # the fingers close on its narrow side
        mujoco.mj_kinematics(self._sim.model, data)
        centre, half = self._things.boxes()
        hand = data.site_xpos[self._arm.grip_site]
        wanted = np.array([*hand[:2], hand[2] + rng.uniform(*DEPTH_M) - half[i, 2]])
        by_rim = size[narrow] > WIDEST_M
        if by_rim:
            wanted[:2] += rng.choice([-1, 1]) * (size[narrow] - RIM_M / 2) * fingers[:2]
        pose[:3] += wanted - centre[i]
        self._fingers(RIM_M if by_rim else min(OPEN_GAP, 2 * size[narrow]))
        return True

    def _reach(self, place: np.ndarray, rotation: np.ndarray) -> bool:
        import mujoco

        joints, error = self._kinematics.joints(place, rotation)
        self._sim.data.qpos[self._arm.qpos] = joints
        mujoco.mj_kinematics(self._sim.model, self._sim.data)
        return error < REACHED

    def _fingers(self, gap: float) -> None:
        self._sim.data.qpos[self._arm.finger_qpos] = [gap / 2, -gap / 2]

    def _within_reach(self, centre: np.ndarray) -> np.ndarray:
        far = np.linalg.norm((centre - self._arm.base)[:, :2], axis=1)
        near = np.flatnonzero(far < AHEAD_M[1] + 0.05)
        return near if len(near) else np.arange(len(centre))[:1]

    def _fits(self, held: int) -> bool:
        """Return whether nothing overlaps that did not lie there before: robot or held thing with anything else."""
        import mujoco

        model, data = self._sim.model, self._sim.data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        moved = self._arm.geoms | (self._things.owner == held) if held >= 0 else self._arm.geoms
        return not any(
            moved[contact.geom[0]] != moved[contact.geom[1]] and contact.dist < -OVERLAP_M
            for contact in data.contact[: data.ncon]
        )


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Return the rotation matrix (3, 3) about an axis."""
    import mujoco

    quat, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quat, axis / np.linalg.norm(axis), angle)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)
