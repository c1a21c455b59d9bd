"""How often the scripted expert solves each task, without noise and without a second attempt.

    python -m benchmarks.expert                 # libero_spatial, init states 0-19
    python -m benchmarks.expert --attempts 3    # with further attempts where the first fails

Writes docs/results/expert.json. Draws nothing, so it takes some 5 s of processor time an episode. Stopped and started
again it goes on with the episodes that are left, which it keeps in .scratch/expert/.
"""

import argparse
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from pipeline.compute import map_unordered
from pipeline.config import load
from pipeline.files import write_atomic
from pipeline.libero.demos import collect
from pipeline.libero.demos.collect import Item, Worker
from pipeline.libero.demos.write import Origin
from pipeline.libero.expert import Noise, attempt
from pipeline.libero.sim.simulator import CAMERAS
from pipeline.libero.suites import Task, tasks
from pipeline.provenance import provenance
from stages import cli

VARIETY = 1.0  # of speed, heights and grasps: the hardest; as further attempts of the stage have it


@dataclass(frozen=True)
class Result:
    """One episode. `attempts` is how many it took, or how many failed."""

    task: int
    row: int
    success: bool
    attempts: int
    steps: int
    retries: int


def main(argv: list[str] | None = None) -> None:
    """Run what is left, write the table, print it."""
    args = arguments(argv)
    params = load(args.params)
    sim = params.sim
    demos = replace(params.demos, first_init_state=args.first, episodes=args.rows, noise_sigma=args.noise)
    chosen = tasks(args.suite, args.tasks)
    kept = Path(".scratch/expert") / f"{collect.fingerprint(args.suite, tasks(args.suite), sim, demos)}.jsonl"
    results = read(kept)
    done = {(r.task, r.row) for r in results}
    rows = range(args.first, args.first + args.rows)
    todo = [Item(t, row, kept) for t in chosen for row in rows if (t.id, row) not in done]
    run = partial(solve, attempts=args.attempts, noise=Noise(args.noise))
    setup = partial(Worker, sim, tuple(CAMERAS))
    progress = tqdm(map_unordered(run, todo, params.compute, setup=setup), total=len(todo))
    kept.parent.mkdir(parents=True, exist_ok=True)
    for _, result in progress:
        results.append(result)
        append(kept, result)
        write(args, rows, results)
    for row in write(args, rows, results)["per_task"]:
        print(f"{row['task']:2d}  {row['successes']}/{row['n']}  mean steps {row['mean_steps']}  {row['language']}")
    print(f"written to {args.out}")


def write(args: argparse.Namespace, rows: range, results: list[Result]) -> dict[str, Any]:
    """Write the table of what is done so far; return it."""
    table = [row for t in tasks(args.suite) if (row := per_task(t, [r for r in results if r.task == t.id]))]
    report = {
        "suite": args.suite,
        "rows": [rows.start, rows.stop - 1],
        "noise_sigma": args.noise,
        "trajectory_diversity": VARIETY,
        "attempts": args.attempts,
        "successes": sum(row["successes"] for row in table),
        "n": sum(row["n"] for row in table),
        "per_task": table,
        "provenance": provenance(),
    }
    write_atomic(args.out, json.dumps(report, indent=1) + "\n")
    return report


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--tasks", type=int, nargs="+", help="ids (default: all)")
    parser.add_argument("--first", type=int, default=0, help="first row of the init states (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--attempts", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.0, help="sigma, as demos.noise_sigma (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/expert.json"))
    return parser.parse_args(argv)


def solve(worker: Worker, item: Item, attempts: int, noise: Noise) -> Result:
    """Try one episode until it succeeds, at most `attempts` times."""
    for n in range(attempts):
        origin = Origin(item.row, worker.seed, n)
        tried = attempt(worker.simulator(item.task), origin, noise, record=False, diversity=VARIETY)
        if tried.success:
            break
    return Result(item.task.id, item.row, tried.success, n + 1, tried.steps, tried.retries)


def read(path: Path) -> list[Result]:
    """Return the results kept so far; a line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [Result(**json.loads(line)) for line in lines]


def append(path: Path, result: Result) -> None:
    """Keep one result."""
    whole = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    with path.open("a") as file:
        file.truncate(len(whole[0]) + len(whole[1]))
        file.write(json.dumps(asdict(result)) + "\n")
        os.fsync(file.fileno())


def per_task(task: Task, results: list[Result]) -> dict[str, Any] | None:
    """Return one line of the table; None without results."""
    if not results:
        return None
    steps = [r.steps for r in results if r.success]
    return {
        "task": task.id,
        "language": task.language,
        "successes": len(steps),
        "n": len(results),
        "mean_steps": round(fmean(steps), 1) if steps else None,
        "max_steps": max(steps, default=None),
        "regrasped": sum(r.retries > 0 for r in results),
        "failed_rows": sorted(r.row for r in results if not r.success),
    }


if __name__ == "__main__":
    cli.run(main)
