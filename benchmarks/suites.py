"""Every task of LIBERO's five suites in the simulator: what it takes, and whether its init states are at rest.

    python -m benchmarks.suites [--suites libero_10 ...] [--tasks 0 1 ...] [--workers 2]

Per task, in a process of its own: seconds to build and to reset; how far anything falls, and slides sideways, in the
settling steps from init state 0; milliseconds of a control step, and of drawing both cameras at 128 pixels in either
quality; what the process holds. Writes benchmarks/results/suites.json, and the tables of docs/suites.md.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.compute import cores
from pipeline.config import load
from pipeline.files import write_atomic
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import NO_OP, Simulator
from pipeline.libero.suites import SUITES, Task, init_states, tasks
from pipeline.provenance import cpu_name, versions

RESULT = Path(__file__).parent / "results" / "suites.json"
PAGE = Path(__file__).parents[1] / "docs" / "suites.md"
BEGIN, END = (
    "<!-- made by python -m benchmarks.suites: begin -->\n",
    "<!-- made by python -m benchmarks.suites: end -->\n",
)
SETTLED_MM = 5.0  # what slides farther while settling was not at rest; many of LIBERO's init states let things fall
REPEATS = 7


@dataclass(frozen=True)
class Row:
    """One task. Names of what moved by more than SETTLED_MM are bodies of the MuJoCo model."""

    suite: str
    task: int
    name: str
    build_s: float
    reset_s: float
    fall_mm: float
    slide_mm: float
    moved: tuple[str, ...]
    step_ms: float
    fast_ms: float
    full_ms: float
    difference: float  # of the two qualities' pictures: mean over pixels and channels, of 255
    resident_mb: int  # after drawing in `fast`
    peak_mb: int


def measure(suite: str, task_id: int, sim: Sim) -> Row:
    """Build, reset, settle, step and draw one task; a fresh process gives its memory."""
    task = tasks(suite, [task_id])[0]
    fast = replace(sim, render="fast", settle_steps=0)
    start = time.perf_counter()
    with Simulator(task, fast) as simulator:
        built = time.perf_counter()
        simulator.reset(init_states(task)[0], sim.seed)
        reset = time.perf_counter()
        moved = settle(simulator, sim.settle_steps)
        step_ms = milliseconds(partial(simulator.step, NO_OP))
        pictures = simulator.observe().images
        fast_ms = milliseconds(simulator.observe)
        state, memory = simulator.state(), {name: status_mb(name) for name in ("VmRSS", "VmHWM")}
    full_ms, full = draw_full(task, replace(fast, render="full"), state)
    return Row(
        suite=suite,
        task=task_id,
        name=task.name,
        build_s=round(built - start, 2),
        reset_s=round(reset - built, 2),
        fall_mm=round(max((-down for _, down in moved.values()), default=0.0), 1),
        slide_mm=round(max((sideways for sideways, _ in moved.values()), default=0.0), 1),
        moved=tuple(sorted(name for name, (sideways, _) in moved.items() if sideways > SETTLED_MM)),
        step_ms=step_ms,
        fast_ms=fast_ms,
        full_ms=full_ms,
        difference=round(float(np.mean([np.abs(pictures[c].astype(int) - full[c]).mean() for c in full])), 2),
        resident_mb=memory["VmRSS"],
        peak_mb=memory["VmHWM"],
    )


def draw_full(task: Task, sim: Sim, state: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Return milliseconds of drawing both cameras in full quality, and the pictures of `state`."""
    with Simulator(task, sim) as simulator:
        simulator.reset(init_states(task)[0], sim.seed)
        simulator.set_state(state)
        return milliseconds(simulator.observe), simulator.observe().images


def settle(simulator: Simulator, steps: int) -> dict[str, tuple[float, float]]:
    """Take the settling steps; return by how many millimetres each object with a free joint moved, sideways and up."""
    before = free_bodies(simulator)
    for _ in range(steps):
        simulator.step(NO_OP)
    after = free_bodies(simulator)
    moves = {name: 1e3 * (after[name] - before[name]) for name in before}
    return {name: (float(np.linalg.norm(move[:2])), float(move[2])) for name, move in moves.items()}


def free_bodies(simulator: Simulator) -> dict[str, np.ndarray]:
    """Return the position of each object that lies freely."""
    model, data = simulator.model, simulator.data
    free = np.flatnonzero(model.jnt_type == 0)  # mjJNT_FREE
    return {model.body(model.jnt_bodyid[j]).name: data.xpos[model.jnt_bodyid[j]].copy() for j in free}


def milliseconds(function: Callable[[], Any]) -> float:
    """Return the median time of a call."""
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        taken.append(1e3 * (time.perf_counter() - start))
    return round(median(taken), 1)


def status_mb(field: str) -> int:
    """Return VmRSS or VmHWM of this process in megabytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1000


def measure_all(chosen: list[tuple[str, int]], sim: Sim, workers: int) -> list[Row]:
    """Measure each task in a process of its own."""
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(measure, suite, task, sim) for suite, task in chosen]
        return [future.result() for future in tqdm(futures, desc="tasks", unit="task")]


def summary(rows: list[Row]) -> list[dict[str, Any]]:
    """Return a line for each suite: medians over its tasks, and the worst."""
    lines = []
    for suite in dict.fromkeys(row.suite for row in rows):
        of = [row for row in rows if row.suite == suite]
        numbers = ("build_s", "reset_s", "step_ms", "fast_ms", "full_ms", "difference")
        lines.append(
            {"suite": suite, "tasks": len(of)}
            | {name: round(median(getattr(row, name) for row in of), 2) for name in numbers}
            | {"fall_mm_max": max(row.fall_mm for row in of), "slide_mm_max": max(row.slide_mm for row in of)}
            | {"not_at_rest": sum(bool(row.moved) for row in of)}
            | {"resident_mb_max": max(row.resident_mb for row in of), "peak_mb_max": max(row.peak_mb for row in of)}
        )
    return lines


def page(rows: list[Row]) -> str:
    """Return the tables of docs/suites.md."""
    head = (
        "| Suite | Tasks | Build, s | Reset, s | Step, ms | Both cameras, ms: fast | full | Mean difference, of 255 | "
        "Slides | Memory, MB: held | peak |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = "".join(
        f"| {s['suite']} | {s['tasks']} | {s['build_s']} | {s['reset_s']} | {s['step_ms']} | {s['fast_ms']} | "
        f"{s['full_ms']} | {s['difference']} | {s['not_at_rest']} | {s['resident_mb_max']} | {s['peak_mb_max']} |\n"
        for s in summary(rows)
    )
    restless = "".join(
        f"| {row.suite} | {row.task} | {row.name} | {', '.join(row.moved)} | {row.slide_mm} |\n"
        for row in rows
        if row.moved
    )
    columns = (
        "build_s",
        "reset_s",
        "fall_mm",
        "slide_mm",
        "step_ms",
        "fast_ms",
        "full_ms",
        "difference",
        "resident_mb",
    )
    every = "".join(
        f"| {row.suite} {row.task} | {' | '.join(str(getattr(row, name)) for name in columns)} |\n" for row in rows
    )
    return (
        f"{head}{lines}\nTasks in which something slides by more than {SETTLED_MM:g} mm while settling:\n\n"
        f"| Suite | Task | Name | What slides | mm |\n|---|---|---|---|---|\n{restless}\nEvery task:\n\n"
        "| Task | Build, s | Reset, s | Falls, mm | Slides, mm | Step, ms | fast, ms | full, ms | Difference | "
        "Memory, MB |\n"
        f"|---|---|---|---|---|---|---|---|---|---|\n{every}"
    )


def write_page(rows: list[Row], path: Path) -> None:
    """Put the tables between the two marks of a Markdown page."""
    before, _, rest = path.read_text().partition(BEGIN)
    write_atomic(path, before + BEGIN + page(rows) + END + rest.partition(END)[2])


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--tasks", type=int, nargs="+", help="ids, of each suite (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes; more than one disturb each other's times")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    sim = load(args.params).sim
    chosen = [(task.suite, task.id) for suite in args.suites for task in tasks(suite, args.tasks)]
    load_before = round(os.getloadavg()[0], 1)
    rows = measure_all(chosen, sim, args.workers)
    result = {
        "machine": {"cpu": cpu_name(), "cores": cores(), "load_before": load_before, "workers": args.workers},
        "versions": versions(),
        "settle_steps": sim.settle_steps,
        "suites": (lines := summary(rows)),
        "tasks": [asdict(row) for row in rows],
    }
    write_atomic(args.out, json.dumps(result, indent=1) + "\n")
    write_page(rows, args.page)
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
