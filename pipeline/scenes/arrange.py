"""Put a scene's objects at random places: on the table, on each other, in and on the furniture; drawers and doors too.

Where nothing is said to be, LIBERO's placements never are: all is drawn, none is an init state of the benchmark.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pipeline.errors import SimulatorError
from pipeline.libero.sim.arm import Arm
from pipeline.libero.sim.simulator import Simulator
from pipeline.scenes.things import Things

REACH_M = (0.28, 0.82)
"""Horizontal distance from the arm's base within which things are put."""
SIDE_M = 0.38
FURNITURE_SHIFT_M, FURNITURE_TURN = 0.04, 0.25  # radians
ABSENT = 0.1  # of the objects, each
ON_THE_TABLE, ON_ANOTHER = 0.65, 0.2  # of the places of an object; the rest are regions of furniture
DROP_M = 0.008
OVERLAP_M = 0.002
PLACES, ARRANGEMENTS = 40, 5  # tries
SETTLE_STEPS, HELD_STEPS = 300, 20  # of 2 ms; the arm is put back every HELD_STEPS
AWAY_M = (5.0, 4.0)  # behind the camera, on the floor
FALLEN_M = 0.05


class Arranger:
    """Makes arrangements of one simulator's scene. Valid until its next reset.

    Args:
        sim: after a reset, settled: what stands upright now is put upright.

    Attributes:
        surface: height of the table, metres, world frame.
    """

    def __init__(self, sim: Simulator) -> None:
        self._sim = sim
        self._things = Things(sim)
        self._arm = Arm(sim)
        model, data = sim.model, sim.data
        self._movable = [i for i, thing in enumerate(self._things.things) if thing.qpos is not None]
        self._furniture = [i for i, thing in enumerate(self._things.things) if thing.qpos is None]
        self._upright = {i: data.qpos[self._pose(i)][3:].copy() for i in self._movable}
        self._stands = {i: (model.body_pos[b].copy(), model.body_quat[b].copy()) for i, b in self._bodies()}
        self._joints = data.qpos[self._arm.qpos].copy()
        centre, half = self._things.boxes()
        self.surface = float(min((centre - half)[i, 2] for i in self._movable))
        self._hinges = [
            j
            for j in range(model.njnt)
            if model.body_rootid[model.jnt_bodyid[j]] in {b for _, b in self._bodies()} and model.jnt_limited[j]
        ]

    def _bodies(self) -> list[tuple[int, int]]:
        return [(i, self._things.things[i].body) for i in self._furniture]

    def _pose(self, i: int) -> slice:
        start = self._things.things[i].qpos
        assert start is not None
        return slice(start, start + 7)

    def arrange(self, rng: np.random.Generator) -> None:
        """Bring the scene into a new state, at rest.

        Raises:
            SimulatorError: whatever was tried, the simulation blew up.
        """
        for _ in range(ARRANGEMENTS):
            if self._try(rng):
                return
        raise SimulatorError(f"{self._sim.task.name}: no arrangement of the objects in {ARRANGEMENTS} tries")

    def _try(self, rng: np.random.Generator) -> bool:
        data = self._sim.data
        self._move_furniture(rng)
        for i in self._movable:
            self._put_away(i)
        with self._robot_untouchable():
            for i in rng.permutation(self._movable):
                if rng.random() >= ABSENT:
                    self._place(int(i), rng)
            data.qvel[:] = 0
            self._settle()
        centre, _ = self._things.boxes()
        for i in self._movable:  # what fell from the table is left out
            if centre[i, 2] < self.surface - FALLEN_M:
                self._put_away(i)
        data.qvel[:] = 0
        self._sim.set_state(self._sim.state())
        return bool(np.isfinite(data.qpos).all())

    def _move_furniture(self, rng: np.random.Generator) -> None:
        import mujoco

        model, data = self._sim.model, self._sim.data
        for i, body in self._bodies():
            position, quat = self._stands[i]
            model.body_pos[body, :2] = position[:2] + rng.uniform(-FURNITURE_SHIFT_M, FURNITURE_SHIFT_M, 2)
            mujoco.mju_mulQuat(model.body_quat[body], about_z(rng.uniform(-FURNITURE_TURN, FURNITURE_TURN)), quat)
        for joint in self._hinges:  # closed, open or between the two
            low, high = model.jnt_range[joint]
            data.qpos[model.jnt_qposadr[joint]] = (low, high, rng.uniform(low, high), 0.0)[rng.integers(4)]

    def _put_away(self, i: int) -> None:
        data = self._sim.data
        data.qpos[self._pose(i)] = [AWAY_M[0] + 0.5 * i, AWAY_M[1], 0.5, *self._upright[i]]

    def _place(self, i: int, rng: np.random.Generator) -> None:
        """Put an object somewhere where it touches nothing; leave it away if no such place is found."""
        for _ in range(PLACES):
            kind = rng.random()
            if kind < ON_THE_TABLE or not self._rest_on(i, kind < ON_THE_TABLE + ON_ANOTHER, rng):
                self._rest_at(i, self._on_the_table(rng), self.surface, rng)
            if not self._overlaps(i):
                return
        self._put_away(i)

    def _on_the_table(self, rng: np.random.Generator) -> np.ndarray:
        far = np.sqrt(rng.uniform(REACH_M[0] ** 2, REACH_M[1] ** 2))
        side = rng.uniform(-min(SIDE_M, far), min(SIDE_M, far))
        ahead = np.sqrt(max(far**2 - side**2, REACH_M[0] ** 2))
        return self._arm.base[:2] + np.array([ahead, side])

    def _rest_on(self, i: int, another: bool, rng: np.random.Generator) -> bool:
        """Put object i on another one, or in a region of something; return False if there is none."""
        centre, half = self._things.boxes()
        if another:
            there = [j for j in self._movable if j != i and centre[j, 2] > self.surface - FALLEN_M and self._near(j)]
            if not there:
                return False
            j = there[rng.integers(len(there))]
            self._rest_at(i, centre[j, :2] + rng.normal(0, 0.01, 2), centre[j, 2] + half[j, 2], rng)
            return True
        regions = [r for r in self._things.regions if r.thing != i and self._near(r.thing)]
        if not regions:
            return False
        site = regions[rng.integers(len(regions))].site
        data, size = self._sim.data, self._sim.model.site_size[site]
        turn = data.site_xmat[site].reshape(3, 3)
        spread = np.abs(turn) @ size
        place = data.site_xpos[site] + rng.uniform(-0.5, 0.5, 3) * spread
        self._rest_at(i, place[:2], data.site_xpos[site][2] - spread[2], rng)
        return True

    def _near(self, i: int) -> bool:
        place = self._sim.data.xpos[self._things.things[i].body][:2]
        return float(np.linalg.norm(place - self._arm.base[:2])) < 1.5

    def _rest_at(self, i: int, place: np.ndarray, height: float, rng: np.random.Generator) -> None:
        """Put object i upright, at any turn, with its bottom just above `height`."""
        import mujoco

        model, data = self._sim.model, self._sim.data
        pose = data.qpos[self._pose(i)]
        pose[:3] = [*place, 0.0]
        mujoco.mju_mulQuat(pose[3:], about_z(rng.uniform(-np.pi, np.pi)), self._upright[i])
        mujoco.mj_kinematics(model, data)
        centre, half = self._things.boxes()
        pose[:2] += place - centre[i, :2]
        pose[2] = height + DROP_M - (centre[i, 2] - half[i, 2])

    def _overlaps(self, i: int) -> bool:
        import mujoco

        model, data = self._sim.model, self._sim.data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        mine = self._things.owner == i
        return any(
            mine[contact.geom[0]] != mine[contact.geom[1]] and contact.dist < -OVERLAP_M
            for contact in data.contact[: data.ncon]
        )

    def _settle(self) -> None:
        """Let things fall, the arm held where it is. What still rolls is stopped by who calls: a picture is a still."""
        import mujoco

        model, data = self._sim.model, self._sim.data
        for _ in range(SETTLE_STEPS // HELD_STEPS):
            mujoco.mj_step(model, data, HELD_STEPS)
            data.qpos[self._arm.qpos] = self._joints
            data.qvel[self._arm.dof] = 0

    @contextmanager
    def _robot_untouchable(self) -> Iterator[None]:
        """Have nothing collide with the robot, for this long: it is put elsewhere afterwards."""
        model, robot = self._sim.model, self._arm.geoms
        types = model.geom_contype[robot].copy(), model.geom_conaffinity[robot].copy()
        model.geom_contype[robot] = model.geom_conaffinity[robot] = 0
        try:
            yield
        finally:
            model.geom_contype[robot], model.geom_conaffinity[robot] = types


def about_z(angle: float) -> np.ndarray:
    """Return the quaternion (wxyz) of a turn about the vertical axis."""
    return np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])
