"""One unit of work: some pictures of one scene, and what they show. A pure function of the unit and the seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.libero.expert.controller import Expert
from pipeline.libero.expert.scene import Scene as Goal
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import CAMERAS, Simulator
from pipeline.scenes.appearance import varied
from pipeline.scenes.arrange import Arranger
from pipeline.scenes.catalogue import Scene, scenes
from pipeline.scenes.pose import Poser
from pipeline.scenes.state import FIELDS, Contents, Witness

PICTURES = 128
"""Rows of a unit."""
OF_AN_ARRANGEMENT = 8
MOTION_SUITE = "libero_spatial"
"""Of every third unit of its scene, the pictures are of the scripted expert at work."""
MOTION_STEPS, EVERY = 128, 4  # of one motion; a picture every so many control steps
MOTION_FROM_M = 0.75  # of the arm's base: what the expert is to take and where to put it


@dataclass(frozen=True)
class Unit:
    """What to take pictures of.

    Attributes:
        index: number of the unit, and of its shard.
        scene: number of the scene.
        part: how many units of this scene come before it.
        stream: of random numbers; those of training and held out ones differ.
    """

    index: int
    scene: int
    part: int
    stream: int


class Photographer:
    """Holds the simulator of the scene at hand; units come sorted by scene, so it is seldom built anew."""

    def __init__(self, sim: Sim) -> None:
        self._settings = sim
        self._scenes = scenes()
        self._scene: int | None = None
        self._sim: Simulator | None = None

    def close(self) -> None:
        if self._sim is not None:
            self._sim.close()
            self._sim = None

    def _simulator(self, scene: int) -> Simulator:
        if self._sim is None or self._scene != scene:
            self.close()
            self._sim, self._scene = Simulator(self._scenes[scene].tasks[0], self._settings), scene
        return self._sim

    def take(self, unit: Unit, seed: int) -> tuple[Contents, dict[str, np.ndarray]]:
        """Return what the scene holds and the unit's rows: FIELDS, "image/<camera>" and "label/<camera>"."""
        sim, scene = self._simulator(unit.scene), self._scenes[unit.scene]
        draws = np.random.default_rng([seed, unit.stream, unit.scene, unit.part])
        sim.reset(None, int(draws.integers(2**31)))
        in_motion = scene.suite == MOTION_SUITE and unit.part % 3 == 1
        witness = Witness(sim, scene)
        rows: list[dict[str, Any]] = []
        for held in (_motions if in_motion else _poses)(sim, scene, draws):
            rows.append(_row(sim, witness, held, draws))
            if len(rows) == PICTURES:
                break
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        arrays["scene"] = np.full(PICTURES, unit.scene)
        return witness.contents, {
            name: array.astype(FIELDS[name][1]) if name in FIELDS else array for name, array in arrays.items()
        }


def _row(sim: Simulator, witness: Witness, held: int | None, draws: np.random.Generator) -> dict[str, Any]:
    sim.env._post_process()  # which lights a stove that is on
    with varied(sim, witness.things, draws) as changed:
        observation = sim.observe()
        labels = witness.labels()
    row = witness.state(observation, held) | {"varied": changed}
    for camera in CAMERAS:
        row[f"image/{camera}"] = observation.images[camera]
        row[f"label/{camera}"] = labels[camera]
    return row


def _poses(sim: Simulator, scene: Scene, draws: np.random.Generator) -> Iterator[int]:
    """Bring the simulator into one state after the other; yield the thing in the hand, -1 for none."""
    arranger, poser = Arranger(sim), Poser(sim)
    while True:
        arranger.arrange(draws)
        arranged = sim.state().copy()
        for _ in range(OF_AN_ARRANGEMENT):
            sim.set_state(arranged)
            yield poser.pose(arranger.surface, draws)


def _motions(sim: Simulator, scene: Scene, draws: np.random.Generator) -> Iterator[None]:
    """Let the expert of the suite work in one arrangement after the other; what it holds is to be seen by touch."""
    arranger = Arranger(sim)
    while True:
        arranger.arrange(draws)
        goal = Goal(sim)
        far = [np.linalg.norm((goal.position(name) - goal.base)[:2]) for name in (goal.object, goal.target)]
        if max(far) > MOTION_FROM_M:
            continue
        expert = Expert(goal, draws, 1.0, None)
        for step in range(MOTION_STEPS):
            if step % EVERY == 0:
                yield None
            if expert.done:
                break
            sim.step(expert.act().action)
