"""What is known of a picture's scene besides the picture: where things are, what lies on what, what is open, who holds.

Rows of one scene mean the same things in the same order; `Contents` tells which.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.libero.sim.arm import Arm
from pipeline.libero.sim.simulator import CAMERAS, Observation, Simulator
from pipeline.scenes.catalogue import Scene
from pipeline.scenes.things import Things

THINGS, PARTS, TASKS = 10, 4, 10
"""Columns of the arrays; no scene has more."""
AWAY_M = 2.0  # from the arm's base: what was put away, no picture shows
FINGERS = (
    ("gripper0_leftfinger", "gripper0_finger_joint1_tip"),
    ("gripper0_rightfinger", "gripper0_finger_joint2_tip"),
)
OTHER = -1
"""In labels: what is no thing, the robot among it."""


@dataclass(frozen=True)
class Part:
    """A drawer, a door or a knob: its name, and the number of the thing it belongs to."""

    name: str
    thing: int


@dataclass(frozen=True)
class Contents:
    """What a scene holds, in the order of the columns of its rows."""

    scene: str
    suite: str
    tasks: tuple[str, ...]  # instructions
    involved: tuple[tuple[int, ...], ...]  # of each task, numbers of the things that it is about
    kinds: tuple[str, ...]  # of the things
    regions: tuple[tuple[int, str], ...]  # number of the thing, and which part of it
    parts: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "Contents":
        """Return what `to_json` gave."""
        return cls(
            scene=tree["scene"],
            suite=tree["suite"],
            tasks=tuple(tree["tasks"]),
            involved=tuple(tuple(things) for things in tree["involved"]),
            kinds=tuple(tree["kinds"]),
            regions=tuple((thing, part) for thing, part in tree["regions"]),
            parts=tuple(Part(**part) for part in tree["parts"]),
        )


FIELDS: dict[str, tuple[tuple[int, ...], str]] = {
    "scene": ((), "int16"),
    "varied": ((), "bool"),
    "thing/present": ((THINGS,), "bool"),
    "thing/position": ((THINGS, 3), "float32"),
    "thing/half_extent": ((THINGS, 3), "float32"),
    "thing/support": ((THINGS,), "int8"),
    "thing/region": ((THINGS,), "int8"),
    "part/state": ((PARTS,), "int8"),
    "task/solved": ((TASKS,), "int8"),
    "hand/position": ((3,), "float32"),
    "hand/gap": ((), "float32"),
    "hand/holding": ((), "int8"),
    "lowdim/joint_pos": ((7,), "float32"),
    "lowdim/ee_pose": ((7,), "float32"),
    "lowdim/gripper": ((2,), "float32"),
}
"""Shape of one row and dtype. Positions are of the middle of the box around a thing, metres, from the robot's base."""


class Witness:
    """Writes down the state of one simulator's scene. Valid until its next reset."""

    def __init__(self, sim: Simulator, scene: Scene) -> None:
        from libero.libero.envs.bddl_utils import robosuite_parse_problem

        self._sim = sim
        self.things = Things(sim)
        self._arm = Arm(sim)
        self._hinges = self._find_hinges()
        problems = [robosuite_parse_problem(str(task.bddl_file)) for task in scene.tasks]
        self._goals = [problem["goal_state"] for problem in problems]
        self._fingers = [self._finger(bodies) for bodies in FINGERS]
        self.contents = Contents(
            scene=scene.name,
            suite=scene.suite,
            tasks=tuple(task.language for task in scene.tasks),
            involved=tuple(self._involved(problem) for problem in problems),
            kinds=tuple(thing.kind for thing in self.things.things),
            regions=tuple((region.thing, region.part) for region in self.things.regions),
            parts=tuple(part for part, _ in self._hinges),
        )

    def _involved(self, problem: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the things that a task names or has in its goal; of a region, the thing that it belongs to."""
        names = [*problem["obj_of_interest"], *(name for _, *names in problem["goal_state"] for name in names)]
        numbers = (
            i for name in names for i, thing in enumerate(self.things.things) if f"{name}_".startswith(f"{thing.name}_")
        )
        return tuple(sorted(set(numbers)))

    def _find_hinges(self) -> list[tuple[Part, int]]:
        model, found = self._sim.model, []
        for i, thing in enumerate(self.things.things):
            root = model.body_rootid[thing.body]
            for joint in range(model.njnt):
                if model.body_rootid[model.jnt_bodyid[joint]] == root and model.jnt_limited[joint]:
                    name = model.joint(joint).name.removeprefix(f"{thing.name}_").removesuffix("_level")
                    found.append((Part(name, i), joint))
        return found

    def _finger(self, names: tuple[str, str]) -> np.ndarray:
        model = self._sim.model
        return np.isin(model.geom_bodyid, [model.body(name).id for name in names])

    def state(self, observation: Observation, held: int | None) -> dict[str, Any]:
        """Return a row of FIELDS, but for "scene" and "varied".

        Args:
            observation: of this state.
            held: the thing in the hand, -1 for none; None: whatever both fingers touch.
        """
        base = self._arm.base
        centre, half = self.things.boxes()
        support, region = self.things.supports()
        present = np.linalg.norm((centre - base)[:, :2], axis=1) < AWAY_M
        held = self._touched() if held is None else held
        if held >= 0:
            support[held] = region[held] = -1
        return {
            "thing/present": _padded(present, THINGS, False),
            "thing/position": _padded(np.where(present[:, None], centre - base, np.nan), THINGS, np.nan),
            "thing/half_extent": _padded(half, THINGS, np.nan),
            "thing/support": _padded(support, THINGS, -1),
            "thing/region": _padded(region, THINGS, -1),
            "part/state": _padded(np.array([self._part(i) for i in range(len(self._hinges))], int), PARTS, 0),
            "task/solved": _padded(np.array([self._solved(goal) for goal in self._goals]), TASKS, -1),
            "hand/position": self._arm.hand - base,
            "hand/gap": self._arm.finger_gap,
            "hand/holding": held,
            "lowdim/joint_pos": observation.joint_pos,
            "lowdim/ee_pose": observation.ee_pose,
            "lowdim/gripper": observation.gripper,
        }

    def labels(self) -> dict[str, np.ndarray]:
        """Return of each camera's picture which thing each pixel shows, (H, W) int8; OTHER for none."""
        owner = np.append(self.things.owner, OTHER)  # the last one is what geom -1 finds
        return {camera: owner[self._sim.labels(camera)].astype(np.int8) for camera in CAMERAS}

    def _part(self, i: int) -> int:
        """Return 1 for open or switched on, -1 for closed or off, 0 for between the two: LIBERO's own limits."""
        part, joint = self._hinges[i]
        where = float(self._sim.data.qpos[self._sim.model.jnt_qposadr[joint]])
        thing = self._sim.env.get_object(self.things.things[part.thing].name)
        if hasattr(thing, "turn_on"):
            return int(thing.turn_on(where)) - int(thing.turn_off(where))
        return int(thing.is_open(where)) - int(thing.is_close(where))

    def _solved(self, goal: list[list[str]]) -> int:
        """Return 1 if a task's goal is reached, 0 if not, -1 if it is about a place that the built task lacks."""
        known = self._sim.env.object_states_dict
        if any(name not in known for _, *names in goal for name in names):
            return -1
        return int(all(self._sim.env._eval_predicate(condition) for condition in goal))

    def _touched(self) -> int:
        data, owner = self._sim.data, self.things.owner
        touched: list[set[int]] = [set(), set()]
        for contact in data.contact[: data.ncon]:
            for mine, other in (contact.geom, contact.geom[::-1]):
                for side, finger in enumerate(self._fingers):
                    if finger[mine] and owner[other] >= 0 and self.things.things[owner[other]].qpos is not None:
                        touched[side].add(int(owner[other]))
        return min(touched[0] & touched[1], default=-1)


def _padded(values: np.ndarray, length: int, fill: float | int | bool) -> np.ndarray:
    result = np.full((length, *values.shape[1:]), fill, dtype=np.result_type(values.dtype, type(fill)))
    result[: len(values)] = values
    return result
