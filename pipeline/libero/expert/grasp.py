"""Where to take hold of the bowl: the place on its rim from which both grasping and placing can be done."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.libero.expert.scene import Scene
from pipeline.libero.sim.kinematics import Kinematics, Reach, above, yaw

# The akita_black_bowl's collision boxes: their top is 52.4 mm above its origin; 19 mm below it the wall is at 47.5 mm
# and leans 14.7 degrees outwards.
RIM_HEIGHT = 0.0524
WALL_RADIUS, WALL_AT, WALL_LEAN = 0.0475, 0.019, 0.262
# Of the finger tips below the rim, metres. At 0.014 the flared rim slipped out of 6 %: depth is a policy's room to err.
DEPTHS = (0.026, 0.020, 0.015)
ANGLES = 24
PLATE_HEIGHT = 0.010  # of a bowl's origin above the plate's, when it stands on it
ELBOW_MARGIN = 0.6  # radians from 0: below -0.6 the arm is far enough from being stretched out

# Costs, in a unit of which 0.1 is a clear difference.
PER_METRE_PENETRATION = 40.0
PER_UNREACHED = 5.0
REACHED = 2e-3
PER_RADIAN_ELBOW = 0.3
PER_RADIAN_YAW = 0.02
PER_METRE_SHALLOW = 4.0
PER_METRE_PATH = 0.03
TRIED_BEFORE = 0.3
JITTER = 0.02


@dataclass(frozen=True)
class Grasp:
    """A place on the rim.

    Attributes:
        angle: direction from the bowl's centre, radians, world frame.
        position: of the hand, (3,) metres.
        yaw: turn of the hand from its rest pose, radians.
        object_position: where the bowl was when this was planned.
    """

    angle: float
    position: np.ndarray
    yaw: float
    object_position: np.ndarray


def place_position(scene: Scene) -> np.ndarray:
    """Return where the bowl's origin (3,) shall come to rest."""
    return scene.position(scene.target) + above(PLATE_HEIGHT)


def candidates(scene: Scene) -> list[tuple[Grasp, float]]:
    """Return grasps all around the rim, with their depths below it."""
    origin, up = scene.position(scene.object), scene.rotation(scene.object)[:, 2]
    found = []
    for angle in np.arange(ANGLES) * 2 * np.pi / ANGLES:
        outward = np.array([np.cos(angle), np.sin(angle), 0])
        outward -= up * (outward @ up)
        outward /= np.linalg.norm(outward)
        # The fingers open along world y when the hand has yaw 0, and must straddle the wall. The hand is symmetric
        # under half a turn: yaw in [-pi/2, pi/2).
        turn = angle % np.pi - np.pi / 2
        for depth in DEPTHS:
            position = origin + up * (RIM_HEIGHT - depth) + outward * (WALL_RADIUS + WALL_LEAN * (WALL_AT - depth))
            found.append((Grasp(float(angle), position, float(turn), origin), depth))
    return found


def choose(
    scene: Scene, rest: np.ndarray, rng: np.random.Generator, tried: Sequence[float], diversity: float = 1.0
) -> Grasp:
    """Return the cheapest grasp.

    Args:
        rest: rotation matrix (3, 3) of the hand at yaw 0.
        rng: breaks near ties, so that demonstrations vary.
        tried: angles that failed before; their neighbourhood costs extra.
        diversity: how much the ties are shaken, 0 to 1.
    """
    kinematics = Kinematics(scene)
    goal = place_position(scene)
    costs = []
    for grasp, depth in candidates(scene):
        rotation = yaw(grasp.yaw) @ rest
        take = kinematics.reach([grasp.position + above(h) for h in (0.10, 0.015, 0.0, -0.004)], rotation)
        put_position = goal + (grasp.position - grasp.object_position)
        put = kinematics.reach([put_position + above(h) for h in (0.10, 0.03)], rotation)
        cost = _reach_cost(take) + PER_METRE_PENETRATION * take.penetration + _reach_cost(put)
        cost += PER_RADIAN_YAW * abs(grasp.yaw) + PER_METRE_SHALLOW * (DEPTHS[0] - depth)
        cost += PER_METRE_PATH * float(np.linalg.norm(grasp.position[:2] - scene.hand[:2]))
        cost += (
            TRIED_BEFORE * any(_angle_between(grasp.angle, t) < 0.6 for t in tried) + diversity * JITTER * rng.random()
        )
        costs.append((cost, grasp))
    return min(costs, key=lambda pair: pair[0])[1]


def _reach_cost(reach: Reach) -> float:
    return PER_UNREACHED * max(0.0, reach.error - REACHED) + PER_RADIAN_ELBOW * max(0.0, reach.elbow + ELBOW_MARGIN)


def _angle_between(a: float, b: float) -> float:
    return abs((a - b + np.pi) % (2 * np.pi) - np.pi)
