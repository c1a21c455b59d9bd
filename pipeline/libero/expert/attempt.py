"""One episode of the expert: noise on what it does, a record of it, and a verdict."""

from dataclasses import dataclass

import numpy as np

from pipeline.libero.demos.write import Episode, FirstTry, Origin, Recorder
from pipeline.libero.expert.controller import Expert, Miss
from pipeline.libero.expert.scene import Scene
from pipeline.libero.sim.displacement import displaced
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import SUITES, init_states

HOLD_STEPS = 10
"""Success must last this many steps, as in LIBERO's collect_demonstration.py; the record ends with them."""
ROTATION_NOISE = 0.3  # of the noise on positions

# Metres by which a first try errs: (least, most) sideways, and upwards. Nearer a bowl the fingers catch its rim.
ABOVE, BESIDE, OFF_TARGET = ((0.0, 0.03), (0.035, 0.055)), ((0.055, 0.09), (0.0, 0.02)), ((0.035, 0.07), (0.0, 0.0))
# The phases in which the second one begins, and in how many steps of them at most.
NOTICED: dict[FirstTry, tuple[str, ...]] = {"missed": ("lift", "carry"), "misplaced": ("retreat",)}
UNNOTICED_STEPS = 20
FIRST_TRIES = 10  # drawn, until one fails as it should: fingers beside one wall of the bowl may catch the other

SOLVED_SUITES = ("libero_spatial",)


@dataclass(frozen=True)
class Noise:
    """Disturbance of the executed action in free motion: the data then show how to recover (DART, arXiv 1703.09327).

    Attributes:
        sigma: standard deviation of the three translations, in action units; of the rotations, 0.3 of it.
        ar: correlation of a step's noise with the next one's.
    """

    sigma: float
    ar: float = 0.5


@dataclass(frozen=True)
class Attempt:
    """What came of it.

    Attributes:
        success: the task was solved and stayed so for 10 steps.
        steps: control steps until the first of these.
        retries: grasps that failed and were repeated.
        phase: the last one.
        episode: what was recorded; None if recording was off or success is False.
    """

    success: bool
    steps: int
    retries: int
    phase: str
    episode: Episode | None


def can_solve(suite: str) -> bool:
    """Return whether the expert knows the skill that this suite needs."""
    return suite in SOLVED_SUITES


def attempt(sim: Simulator, origin: Origin, noise: Noise, record: bool = True, diversity: float = 1.0) -> Attempt:
    """Reset the simulator and let the expert try once: a pure function of its arguments.

    Args:
        origin: row of the initial state (past the benchmark's rows, the environment draws a placement), seed, attempt,
            whether objects are displaced from there, and what a first try failed at: the record is of the second.
        record: keep observations (draws the cameras at each step).
        diversity: how much speed, heights and grasp vary from one attempt to another, 0 to 1.

    Raises:
        DataError: the task's goal is beyond the expert.
    """
    seeds = [origin.seed, sim.task.id, origin.init_row, origin.attempt]
    motion, disturbance, failure = (np.random.default_rng([*seeds, stream]) for stream in (0, 1, 2))
    for _ in range(FIRST_TRIES):
        _reset(sim, origin)
        expert = Expert(Scene(sim), motion, diversity, _miss(origin.first_try, failure) if origin.first_try else None)
        if not origin.first_try or _fail_first(sim, expert, origin.first_try, failure):
            break
    else:
        return Attempt(False, 0, 0, expert.phase, None)
    recorder = Recorder(sim) if record else None
    drift = np.zeros(6)
    steps, held = 0, 0
    while held < HOLD_STEPS and steps < SUITES[sim.task.suite].max_steps + held:
        move = expert.act()
        if expert.done and not held:
            break
        action = move.action.copy()
        if move.free and noise.sigma > 0:
            drift = noise.ar * drift + np.sqrt(1 - noise.ar**2) * noise.sigma * disturbance.normal(size=6)
            action[:6] = np.clip(action[:6] + drift * ([1.0] * 3 + [ROTATION_NOISE] * 3), -1, 1)
        if recorder:
            recorder.before(action, move.action)
        success = sim.step(action)
        if recorder:
            recorder.after()
        steps += 1
        held = held + 1 if success else 0
    success = held == HOLD_STEPS
    episode = recorder.episode(origin) if recorder and success else None
    return Attempt(success, steps - held + (1 if held else 0), expert.retries, expert.phase, episode)


def _miss(what: FirstTry, rng: np.random.Generator) -> Miss:
    """Draw by how much a first try errs, in any direction of the table's plane."""
    sideways, upwards = OFF_TARGET if what == "misplaced" else (ABOVE, BESIDE)[rng.integers(2)]
    angle, far = rng.uniform(-np.pi, np.pi), rng.uniform(*sideways)
    off = np.array([far * np.cos(angle), far * np.sin(angle), rng.uniform(*upwards)])
    return Miss(grasp=off) if what == "missed" else Miss(place=off)


def _fail_first(sim: Simulator, expert: Expert, what: FirstTry, rng: np.random.Generator) -> bool:
    """Let the expert try, and return whether it failed as it should; if so, it is about to begin again."""
    left = int(rng.integers(UNNOTICED_STEPS))
    noticed = solved = False
    for _ in range(SUITES[sim.task.suite].max_steps):
        noticed = noticed or expert.phase in NOTICED[what]
        left -= noticed
        if left < 0 or expert.done:
            break
        solved = sim.step(expert.act().action)
    failed = noticed and not solved and (expert.empty_handed or what == "misplaced")
    expert.begin_again()
    return failed


def _reset(sim: Simulator, origin: Origin) -> None:
    rows = init_states(sim.task)
    if origin.init_row < len(rows):
        state = rows[origin.init_row]
    else:
        state = sim.draw(int(np.random.default_rng([origin.seed, sim.task.id, origin.init_row]).integers(2**31)))
    sim.reset(state, origin.seed)
    if origin.displaced:
        rng = np.random.default_rng([origin.seed, sim.task.id, origin.init_row])
        sim.reset(displaced(sim, origin.displaced, rng), origin.seed)
