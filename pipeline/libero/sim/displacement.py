"""Objects elsewhere than the benchmark has them: its init states vary a place by a centimetre, no test of looking."""

from typing import Any

import numpy as np
from jaxtyping import Float

from pipeline.libero.sim.simulator import Simulator

REACH_M = (0.35, 0.80)
"""Horizontal distance from the arm's base, within which it can grasp and place."""
TRIES = 100  # of a place for each group
TABLES = ("table", "floor", "world")


def displaced(sim: Simulator, radius: float, rng: np.random.Generator) -> Float[np.ndarray, "D"]:
    """Return the present state with everything that lies on the table moved, each within +-`radius` metres in x and y.

    What lies on something goes with it, and what lies on furniture stays, as the furniture does. Nothing touches what
    it did not touch before, and all stays within the arm's reach; what finds no such place stays where it is.

    Args:
        sim: after a reset, settled. It is left in the new state.
    """
    state = sim.state().copy()
    state[1 + sim.model.nq :] = 0  # at rest
    for group in _groups(sim):
        state = _moved(sim, state, group, radius, rng)
    sim.set_state(state)
    return state


def _moved(
    sim: Simulator, state: np.ndarray, group: frozenset[str], radius: float, rng: np.random.Generator
) -> np.ndarray:
    sim.set_state(state)
    before = _touching(sim)
    columns = [1 + joint.qposadr[0] for body in group if (joint := _joint(sim.model, body)) is not None]
    for _ in range(TRIES):
        tried = state.copy()
        shift = rng.uniform(-radius, radius, 2)
        for column in columns:
            tried[column : column + 2] += shift
        sim.set_state(tried)
        if _touching(sim) <= before and all(_within_reach(sim, body) for body in group):
            return tried
    return state


def _groups(sim: Simulator) -> list[frozenset[str]]:
    """Return the objects, by the names of their bodies, that lie on the table: together what lies on each other."""
    movable = {body for body in _bodies(sim.model) if _joint(sim.model, body) is not None}
    groups = [{body} for body in sorted(movable)]
    fixed: set[str] = set()
    for a, b in sorted(_touching(sim)):
        if {a, b} <= movable:
            one = next(g for g in groups if a in g)
            other = next(g for g in groups if b in g)
            if one is not other:
                one |= other
                groups.remove(other)
        elif a in movable or b in movable:
            thing, support = (a, b) if a in movable else (b, a)
            if not support.startswith(TABLES):
                fixed.add(thing)
    return [frozenset(group) for group in groups if not group & fixed]


def _touching(sim: Simulator) -> set[tuple[str, str]]:
    """Return the pairs of things in contact: objects, furniture, table, robot; each by its first body's name."""
    model, data = sim.model, sim.data
    roots = model.body_rootid
    pairs = set()
    for contact in data.contact[: data.ncon]:
        names = sorted(model.body(roots[model.geom_bodyid[geom]]).name for geom in contact.geom)
        pairs.add((names[0], names[1]))
    return pairs


def _bodies(model: Any) -> list[str]:
    return [model.body(i).name for i in range(1, model.nbody) if model.body_parentid[i] == 0]


def _joint(model: Any, body: str) -> Any | None:
    """Return the free joint of a body; None if it has none."""
    import mujoco

    first, count = model.body(body).jntadr[0], model.body(body).jntnum[0]
    free = count == 1 and model.jnt_type[first] == mujoco.mjtJoint.mjJNT_FREE
    return model.joint(first) if free else None


def _within_reach(sim: Simulator, body: str) -> bool:
    base, place = (sim.data.xpos[sim.model.body(name).id][:2] for name in ("robot0_base", body))
    return REACH_M[0] <= float(np.linalg.norm(place - base)) <= REACH_M[1]
