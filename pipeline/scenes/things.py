"""The objects and the furniture of a built scene: their names, their extent, what lies on or in what."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from pipeline.libero.sim.simulator import Simulator

TOUCH_M = 0.004  # contacts of resting things are no farther apart
BOTTOM_M = 0.003  # by which the bottom of what lies on something is above the other's: neighbours share the table
SURFACE_M = 0.008  # half a region's thickness: below it, it is a surface to stand on, above, a room to lie in
SURFACE_REACH_M = 0.03


@dataclass(frozen=True)
class Thing:
    """An object or a piece of furniture.

    Attributes:
        name: LIBERO's name of it, as plate_1.
        kind: the name without its number.
        body: number of its body in the model.
        qpos: first of the 7 numbers of its pose in the state; None for furniture, which stands where the model has it.
    """

    name: str
    kind: str
    body: int
    qpos: int | None


@dataclass(frozen=True)
class Region:
    """A place in or on a thing that LIBERO knows by name, as a drawer's inside.

    Attributes:
        name: LIBERO's name of it.
        part: the name without that of the thing, as top_region.
        thing: number of the thing it belongs to.
        site: number of its box in the model.
    """

    name: str
    part: str
    thing: int
    site: int


class Things:
    """All things of a simulator, objects first. Valid until its next reset, but for the names."""

    def __init__(self, sim: Simulator) -> None:
        env: Any = sim.env
        self.model, self.data = sim.model, sim.data
        names = [*sorted(env.objects_dict), *sorted(n for n in env.fixtures_dict if n in env.obj_body_id)]
        self.things = tuple(self._thing(env, name) for name in names)
        self.regions = tuple(self._regions(env))

    def _thing(self, env: Any, name: str) -> Thing:
        body = int(env.obj_body_id[name])
        movable = name in env.objects_dict
        qpos = int(self.model.jnt_qposadr[self.model.body_jntadr[body]]) if movable else None
        return Thing(name, name.rpartition("_")[0], body, qpos)

    def _regions(self, env: Any) -> list[Region]:
        found = []
        for name in sorted(env.object_sites_dict):
            owner = next((i for i, thing in enumerate(self.things) if name.startswith(f"{thing.name}_")), None)
            if owner is not None:
                part = name.removeprefix(f"{self.things[owner].name}_")
                found.append(Region(name, part, owner, self.model.site(name).id))
        return found

    @cached_property
    def owner(self) -> np.ndarray:
        """Of each geom the number of the thing that it belongs to; -1 for none."""
        roots = self.model.body_rootid[self.model.geom_bodyid]
        owners = np.full(self.model.ngeom, -1)
        for i, thing in enumerate(self.things):
            owners[roots == self.model.body_rootid[thing.body]] = i
        return owners

    def boxes(self) -> tuple[Float[np.ndarray, "M 3"], Float[np.ndarray, "M 3"]]:
        """Return the centres and half extents, metres, of the upright boxes around the things, in the world's axes."""
        turn = self.data.geom_xmat.reshape(-1, 3, 3)
        centre = self.data.geom_xpos + np.einsum("gij,gj->gi", turn, self.model.geom_aabb[:, :3])
        half = np.einsum("gij,gj->gi", np.abs(turn), self.model.geom_aabb[:, 3:])
        low = np.stack([(centre - half)[self.owner == i].min(0) for i in range(len(self.things))])
        high = np.stack([(centre + half)[self.owner == i].max(0) for i in range(len(self.things))])
        return (low + high) / 2, (high - low) / 2

    def size(self, i: int) -> Float[np.ndarray, "3"]:
        """Return half extents of thing i, metres, along the axes of its own body."""
        body, geoms = self.things[i].body, self.owner == i
        own = self.data.xmat[body].reshape(3, 3)
        turn = own.T @ self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        centre = (self.data.geom_xpos[geoms] - self.data.xpos[body]) @ own
        centre += np.einsum("gij,gj->gi", turn, self.model.geom_aabb[geoms, :3])
        half = np.einsum("gij,gj->gi", np.abs(turn), self.model.geom_aabb[geoms, 3:])
        return ((centre + half).max(0) - (centre - half).min(0)) / 2

    def touching(self) -> Bool[np.ndarray, "M M"]:
        """Return which things touch each other."""
        touch = np.zeros((len(self.things), len(self.things)), bool)
        for contact in self.data.contact[: self.data.ncon]:
            a, b = self.owner[contact.geom]
            if min(a, b) >= 0 and contact.dist < TOUCH_M:
                touch[a, b] = touch[b, a] = True
        return touch

    def supports(self) -> tuple[np.ndarray, np.ndarray]:
        """Return of each thing what it lies on or in: the number of a thing and of a region of it, -1 for none (M,)."""
        centre, half = self.boxes()
        touch = self.touching()
        support, region = np.full(len(self.things), -1), np.full(len(self.things), -1)
        for i, thing in enumerate(self.things):
            if thing.qpos is None:
                continue
            region[i] = next((r for r in range(len(self.regions)) if self._within(i, r, centre, half, touch)), -1)
            if region[i] >= 0:
                support[i] = self.regions[region[i]].thing
                continue
            above = [
                j
                for j in np.flatnonzero(touch[i])
                if (np.abs(centre[i] - centre[j])[:2] < half[j, :2]).all()
                and centre[i, 2] - half[i, 2] > centre[j, 2] - half[j, 2] + BOTTOM_M
            ]
            support[i] = max(above, key=lambda j: centre[j, 2] + half[j, 2], default=-1)
        return support, region

    def _within(self, i: int, r: int, centre: np.ndarray, half: np.ndarray, touch: np.ndarray) -> bool:
        """Return whether thing i is in region r; if that is a mere surface, whether it stands on it."""
        region = self.regions[r]
        if region.thing == i:
            return False
        turn = self.data.site_xmat[region.site].reshape(3, 3)
        off = turn.T @ (centre[i] - self.data.site_xpos[region.site])
        size = self.model.site_size[region.site]
        thin = int(np.argmin(size))
        if size[thin] >= SURFACE_M:
            return bool((np.abs(off) < size).all())
        sides = np.delete(np.arange(3), thin)
        height = centre[i, 2] - half[i, 2] - self.data.site_xpos[region.site][2]
        return bool((np.abs(off) < size)[sides].all() and abs(height) < SURFACE_REACH_M and touch[i, region.thing])
