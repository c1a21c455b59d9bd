"""One episode of the expert: noise on what it does, a record of it, and a verdict."""

from dataclasses import dataclass

import numpy as np

from pipeline.libero.displacement import displaced
from pipeline.libero.expert.controller import Expert
from pipeline.libero.expert.scene import Scene
from pipeline.libero.recording import Episode, Origin, Recorder
from pipeline.libero.simulator import Simulator
from pipeline.libero.suites import SUITES, init_states

HOLD_STEPS = 10
"""Success must last this many steps, as in LIBERO's collect_demonstration.py; the record ends with them."""
ROTATION_NOISE = 0.3  # of the noise on positions

SOLVED_SUITES = ("libero_spatial",)


@dataclass(frozen=True)
class Noise:
    """Disturbance of the executed action in free motion: the data then show how to recover (DART, arXiv 1703.09327).

    Attributes:
        sigma: standard deviation of the three translations, in action units; of the rotations, 0.3 of it.
        ar: correlation of a step's noise with the next one's.
    """

    sigma: float
    ar: float


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


def attempt(sim: Simulator, origin: Origin, noise: Noise, record: bool = True, variety: float = 1.0) -> Attempt:
    """Reset the simulator and let the expert try once: a pure function of its arguments.

    Args:
        origin: row of the initial state (past the benchmark's rows, the environment draws a placement), seed, attempt,
            and whether objects are displaced from there.
        record: keep observations (draws the cameras at each step).
        variety: how much speed, heights and grasp vary from one attempt to another, 0 to 1.

    Raises:
        DataError: the task's goal is beyond the expert.
    """
    seeds = [origin.seed, sim.task.id, origin.init_row, origin.attempt]
    _reset(sim, origin)
    motion, disturbance = (np.random.default_rng([*seeds, stream]) for stream in (0, 1))
    expert = Expert(Scene(sim), motion, variety)
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
