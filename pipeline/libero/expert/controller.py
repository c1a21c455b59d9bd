"""The motion: approach, descend, close, lift, carry, lower, release, retreat; from the state now, step by step."""

from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.libero.expert import grasp as grasps
from pipeline.libero.expert.scene import Scene
from pipeline.libero.sim.kinematics import above, rotation_vector, yaw

# LIBERO's OSC_POSE controller: an action of 1 asks for this much in one step.
METRES_PER_ACTION, RADIANS_PER_ACTION = 0.05, 0.5
OPEN, CLOSE = -1.0, 1.0

POSITION_GAIN, ROTATION_GAIN = 2.0, 1.5
MAX_ROTATION_ACTION = 0.5
# Joint 4 ends at -0.07 rad (arm stretched out). There the controller's rotation task fights its position task and the
# hand sticks; so rotation fades out from -0.23 to -0.11.
ELBOW_FADE = (-0.11, 0.12)
RESTING_ROTATION_ACTION = (
    1e-5  # an action of exactly 0 would make the controller adopt the drifted rotation as its goal
)

HOVER = 0.08  # metres above the grasp where approach ends
CLEARANCE = 0.13  # of the hand above the target's origin while carrying
LEFT_BEHIND = 0.01  # metres that a held object has risen, at least, when the hand has risen by 5 cm; it may tilt
STUCK_STEPS, STUCK_RISE = 5, 0.005  # a lift that gained less than 5 mm in 5 steps is stuck; usual are 5 cm
SIDESTEP = 0.01  # metres per step
# LIBERO counts the bowl as on the plate within 3 cm of its centre. One further off than this is lifted and set down
# again: fast arrivals with a stretched arm overshoot by up to 2.5 cm.
OFF_CENTRE, MAX_REPLACEMENTS = 0.02, 2
CLEAR_OF_TARGET = 0.02  # metres above its place to which a held object is lowered with noise
CLEAR_OF_OBJECT = (0.10, 0.03)  # metres sideways, or above the grasp, where an open hand may move with noise
EMPTY = 0.003  # metres between closed fingers; the bowl's rim is at least 3.3 mm thick where it is held
LOST = 0.20  # metres between hand and object: it was dropped
FOLLOWED_SHIFT = 0.05  # an object that moved further than this before the grasp is planned for again
MAX_RETRIES = 3


@dataclass(frozen=True)
class Miss:
    """By how much a first try errs, metres (3,).

    Attributes:
        grasp: beside the place where to take hold. That the object was left behind goes unnoticed.
        place: beside the place where to set down.
    """

    grasp: np.ndarray = field(default_factory=lambda: np.zeros(3))
    place: np.ndarray = field(default_factory=lambda: np.zeros(3))


@dataclass(frozen=True)
class Move:
    """One action of the expert.

    Attributes:
        action: (7,) in [-1, 1].
        free: the hand, with what it holds, is clear of everything, so noise does no harm.
    """

    action: np.ndarray
    free: bool


class Expert:
    """Policy with the simulator's whole state. Call `act` once per control step, until `done`.

    Args:
        scene: of a Simulator that was just reset.
        rng: varies speed, height and choice among equally good grasps.
        diversity: how much, 0 to 1. At 0, equal scenes are solved by equal motions.
        miss: makes it fail, until `begin_again`.
    """

    def __init__(
        self, scene: Scene, rng: np.random.Generator, diversity: float = 1.0, miss: Miss | None = None
    ) -> None:
        self._scene, self._rng, self._diversity = scene, rng, diversity
        self._rest = scene.hand_rotation
        self._speed = 1.0 - 0.25 * self._vary()
        self._begin(miss or Miss())

    def _begin(self, miss: Miss) -> None:
        self._miss = miss
        self._tried: list[float] = []
        self.retries = 0
        self._replacements = 0
        self.done = False
        self._plan()

    def act(self) -> Move:
        """Return the action for the state now."""
        self._t += 1
        phases = {
            "approach": self._approach,
            "descend": self._descend,
            "close": self._close,
            "lift": self._lift,
            "carry": self._carry,
            "lower": self._lower,
            "release": self._release,
            "retreat": self._retreat,
        }
        return phases[self.phase]()

    def begin_again(self) -> None:
        """Err no more: start afresh, from wherever the hand is."""
        self._begin(Miss())

    @property
    def empty_handed(self) -> bool:
        """Whether the fingers have closed on nothing, and left the object behind."""
        return self.left_behind and self._scene.finger_gap < EMPTY

    @property
    def left_behind(self) -> bool:
        """Whether the object is still where it was when the grasp was planned, or lower."""
        return bool(self._scene.position(self._scene.object)[2] - self._grasp.object_position[2] < LEFT_BEHIND)

    def _vary(self) -> float:
        return self._diversity * self._rng.random()

    def _go(self, phase: str) -> None:
        self.phase, self._t = phase, 0

    def _plan(self) -> None:
        self._grasp = grasps.choose(self._scene, self._rest, self._rng, self._tried, self._diversity)
        self._tried.append(self._grasp.angle)
        self._grasp = replace(self._grasp, position=self._grasp.position + self._miss.grasp)
        self._rotation = yaw(self._grasp.yaw) @ self._rest
        self._hover = self._grasp.position + above(HOVER + 0.03 * self._vary())
        self._lift_height = 0.10 + 0.04 * self._vary()
        self._go("approach")

    def _retry(self) -> Move:
        """Let go, rise a little and plan anew with another place on the rim."""
        self.retries += 1
        if self.retries > MAX_RETRIES:
            self.done = True
        else:
            self._plan()
        return Move(np.array([0, 0, 0.6, 0, 0, 0, OPEN]), free=False)

    def _servo(self, target: np.ndarray, gripper: float, speed: float = 1.0) -> np.ndarray:
        """Return the action (7,) that moves the hand towards a position (3,) and the grasp's rotation."""
        scene = self._scene
        move = POSITION_GAIN * (target - scene.hand) / METRES_PER_ACTION
        limit = speed * self._speed
        move *= min(1.0, limit / max(np.abs(move).max(), 1e-9))
        turn = ROTATION_GAIN * rotation_vector(self._rotation @ scene.hand_rotation.T) / RADIANS_PER_ACTION
        turn = np.clip(turn, -MAX_ROTATION_ACTION, MAX_ROTATION_ACTION)
        end, width = ELBOW_FADE
        turn = turn * np.clip((end - scene.elbow) / width, 0, 1) + RESTING_ROTATION_ACTION
        return np.clip(np.concatenate([move, turn, [gripper]]), -1, 1)

    def _take_position(self) -> np.ndarray:
        """Where to take hold, followed if the object was pushed a little since it was planned."""
        shift = self._scene.position(self._scene.object) - self._grasp.object_position
        return self._grasp.position + (shift if np.linalg.norm(shift) < FOLLOWED_SHIFT else 0)

    def _approach(self) -> Move:
        hand, goal = self._scene.hand, self._hover
        away = float(np.linalg.norm(goal[:2] - hand[:2]))
        if goal[2] > hand[2] + 0.03 and away > 0.05:
            # Something high: climb first, then move over it.
            sideways = 0.3 * (goal[:2] - hand[:2]) * (goal[2] - hand[2] < 0.10)
            waypoint = np.append(hand[:2] + sideways, goal[2] + 0.02)
        else:
            waypoint = np.append(goal[:2], goal[2] + min(0.08, 0.35 * away))  # arrive from above
        action = self._servo(waypoint, OPEN)
        turn_left = np.linalg.norm(rotation_vector(self._rotation @ self._scene.hand_rotation.T))
        if (away < 0.01 and abs(hand[2] - goal[2]) < 0.025 and turn_left < 0.06) or self._t > 150:
            self._go("descend")
        sideways, upwards = CLEAR_OF_OBJECT
        return Move(action, free=bool(away > sideways or hand[2] > self._grasp.position[2] + upwards))

    def _descend(self) -> Move:
        hand, goal = self._scene.hand, self._take_position()
        off = float(np.linalg.norm(goal[:2] - hand[:2]))
        funnel = min(0.08, 5 * max(0.0, off - 0.006))  # stay high until above the rim
        action = self._servo(goal + above(funnel), OPEN, speed=0.6)
        if np.linalg.norm(goal - hand) < 0.006 or self._t > 60:
            self._gaps: list[float] = []
            self._go("close")
        return Move(action, free=bool(hand[2] > goal[2] + CLEAR_OF_OBJECT[1]))

    def _close(self) -> Move:
        action = self._servo(self._take_position(), CLOSE, speed=0.3)
        self._gaps.append(self._scene.finger_gap)
        stopped = self._t >= 8 and abs(self._gaps[-1] - self._gaps[-3]) < 5e-4
        if stopped or self._t > 18:
            hand = self._scene.hand
            over_target = self._scene.position(self._scene.target)[2] + CLEARANCE
            self._lift_to = np.append(hand[:2], max(hand[2] + self._lift_height, over_target))
            self._heights: list[float] = []
            self._go("lift")
        return Move(action, free=False)

    def _lift(self) -> Move:
        hand_risen = self._scene.hand[2] - self._grasp.position[2]
        if hand_risen > 0.05 and self.left_behind and not self._blind:
            return self._retry()
        self._heights.append(float(self._scene.hand[2]))
        if self._t > 2 * STUCK_STEPS and self._heights[-1] - self._heights[-STUCK_STEPS] < STUCK_RISE:
            # The hand is caught below something, such as a drawer's handle: get out of there, towards the target.
            way = self._scene.position(self._scene.target)[:2] - self._lift_to[:2]
            self._lift_to[:2] += SIDESTEP * way / max(float(np.linalg.norm(way)), SIDESTEP)
        action = self._servo(self._lift_to, CLOSE, speed=0.8)
        if self._scene.hand[2] > self._lift_to[2] - 0.03:
            self._go("carry")
        elif self._t > 60:  # stuck
            return self._retry()
        return Move(action, free=self._t > 4)

    @property
    def _blind(self) -> bool:
        return bool(self._miss.grasp.any())

    def _place(self) -> np.ndarray:
        return grasps.place_position(self._scene) + self._miss.place

    def _dropped(self) -> bool:
        away = np.linalg.norm(self._scene.position(self._scene.object) - self._scene.hand)
        return bool(away > LOST) and not self._blind

    def _carry(self) -> Move:
        if self._dropped():
            return self._retry()
        hand, held = self._scene.hand, self._scene.position(self._scene.object)
        goal = self._place()
        off = goal[:2] - held[:2]
        away = float(np.linalg.norm(off))
        high, low = self._lift_to[2], goal[2] + 0.05 + (hand[2] - held[2])
        # Come down on the last 12 cm.
        height = high if away > 0.12 else min(high, low + (high - low) * max(0.0, away - 0.03) / 0.09)
        action = self._servo(np.append(hand[:2] + off, height), CLOSE)
        if (away < 0.012 and abs(hand[2] - height) < 0.03) or self._t > 150:
            self._go("lower")
        return Move(action, free=True)

    def _lower(self) -> Move:
        if self._dropped():
            return self._retry()
        scene = self._scene
        hand, held, goal = scene.hand, scene.position(scene.object), self._place()
        waypoint = np.append(hand[:2] + goal[:2] - held[:2], goal[2] + hand[2] - held[2] - 0.005)
        action = self._servo(waypoint, CLOSE, speed=0.5)
        down = scene.touching(scene.object, scene.target) or held[2] < goal[2] + 0.006
        if down and np.linalg.norm(goal[:2] - held[:2]) > OFF_CENTRE and self._replacements < MAX_REPLACEMENTS:
            self._replacements += 1
            self._go("carry")
        elif down or self._t > 50:
            self._anchor = hand
            self._go("release")
        return Move(action, free=bool(held[2] > goal[2] + CLEAR_OF_TARGET))

    def _release(self) -> Move:
        action = self._servo(self._anchor, OPEN, speed=0.3)
        if self._t >= 8:
            self._anchor = self._scene.hand + above(0.10)
            self._go("retreat")
        return Move(action, free=False)

    def _retreat(self) -> Move:
        action = self._servo(self._anchor, OPEN, speed=0.7)
        if self._scene.hand[2] > self._anchor[2] - 0.03 or self._t > 40:
            self.done = True
        return Move(action, free=self._t > 6)
