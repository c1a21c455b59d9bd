"""The store at ten million rows: planned, built, verified and read, with a fake encoder that costs next to nothing.

    python -m benchmarks.scale [--rows 10000000] [--folder DIR]

Rows are narrow (two cameras of 64 features, 348 bytes a row in all), so that they fit on any disk; shards and chunks
have as many rows as those of a real store. Each phase runs in a process of its own, so that its peak memory is its
own. Writes benchmarks/results/scale.json.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cache import open_store, schema, stream
from cache.build import build
from cache.plan import Plan, digest
from cache.units import Episode, Unit
from cache.verify import verify
from pipeline.provenance import cpu_name, versions

CAMERAS = ("agentview", "eye_in_hand")
DIM = 64
FIELDS = schema.fields(CAMERAS, 1, DIM)
SHARD_ROWS, CHUNK_ROWS = 65536, 1024
EPISODE_ROWS = 128  # LIBERO's demonstrations have 75 to 500 steps
STREAM_BYTES = 256 << 20
TEXT = np.ones((1, DIM), np.float32)
REAL_ROW_BYTES = 2 * 512 * 2 + 23 * 4  # two cameras of ViT-B/16, and the low-dimensional arrays


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where to build (default: the system's temporary directory)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-", dir=args.folder))
    try:
        result = measure(args.rows, folder)
    finally:
        shutil.rmtree(folder)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """Return the figures."""
    store, load = folder / "large.zarr", round(os.getloadavg()[0], 1)
    phases = {"imports": phase(nothing), "plan": phase(partial(make_plan, rows, EPISODE_ROWS))}
    phases["build"] = phase(partial(make_store, rows, EPISODE_ROWS, store))
    phases["verify"] = phase(partial(check, store))
    phases["open"] = phase(partial(look, store))
    phases["read"] = phase(partial(read_all, store))
    phases["stream"] = phase(partial(stream_all, store))
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    shutil.rmtree(store)
    # The same with a tenth of the episodes, first in as many rows, then in a tenth of them: what memory depends on.
    few = phase(partial(make_store, rows, 10 * EPISODE_ROWS, folder / "few.zarr"))
    shutil.rmtree(folder / "few.zarr")
    small = phase(partial(make_store, rows // 10, EPISODE_ROWS, folder / "small.zarr"))
    episodes = -(-rows // EPISODE_ROWS)
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before": load},
        "versions": {name: versions()[name] for name in ("python", "numpy", "zarr")},
        "rows": rows,
        "episodes": episodes,
        "row_bytes": sum(field.row_bytes for field in FIELDS),
        "store_bytes": size,
        "shards_per_array": -(-rows // SHARD_ROWS),
        "phases": phases,
        "build_memory": {
            "rows_and_episodes_of_each": [[rows, episodes], [rows, episodes // 10], [rows // 10, episodes // 10]],
            "peak_rss_mib": [phases["build"]["peak_rss_mib"], few["peak_rss_mib"], small["peak_rss_mib"]],
            "bytes_per_episode": round(
                (phases["build"]["peak_rss_mib"] - few["peak_rss_mib"]) * 2**20 / (episodes - episodes // 10)
            ),
        },
        "stream_memory_bytes": STREAM_BYTES,
        "hundred_million_rows_of_512_features": arithmetic(phases, size, episodes),
    }


def arithmetic(phases: Mapping[str, Mapping[str, float]], size: int, episodes: int) -> dict[str, Any]:
    """Return what 100 million rows of a real width would take: time grows with the bytes, memory with the episodes."""
    target = 100_000_000 * REAL_ROW_BYTES
    plan_mib = phases["plan"]["peak_rss_mib"] - phases["imports"]["peak_rss_mib"]
    return {
        "store_bytes": target,
        "episodes": 100_000_000 // EPISODE_ROWS,
        "minutes": {
            name: round(phases[name]["seconds"] * target / size / 60, 1)
            for name in ("build", "verify", "read", "stream")
        },
        "plan_mib": round(plan_mib * 100_000_000 / EPISODE_ROWS / episodes),
    }


def phase(work: Callable[[], object]) -> dict[str, float]:
    """Run in a new process; return its wall time and the most memory it had."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_phase, work).result()


def _phase(work: Callable[[], object]) -> dict[str, float]:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    return {"seconds": round(seconds, 2), "peak_rss_mib": round(peak / 1024, 1)}


def nothing() -> None:
    """Do nothing: what a process needs that has imported all this."""


def make_plan(rows: int, episode_rows: int) -> Plan:
    """Return a plan over made-up episodes, with its fingerprint and the keys of its units computed."""
    made = Plan(
        identity={"benchmark": "scale"},
        fields=FIELDS,
        episodes=tuple(
            Episode(min(episode_rows, rows - start), 0, f"scale/task_demo.hdf5/demo_{start}", digest(start), start)
            for start in range(0, rows, episode_rows)
        ),
        instructions=("none",),
        task_ids=(0,),
        shard_rows=SHARD_ROWS,
        chunk_rows=CHUNK_ROWS,
    )
    assert made.fingerprint
    assert len({made.unit_key(unit) for unit in made.units()}) == made.unit_count
    return made


@dataclass(frozen=True)
class MakeRows:
    """A fake encoder: noise that is drawn once, and rows that tell their number."""

    def __call__(self) -> Callable[[Unit], dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        noise = {f.name: rng.standard_normal((SHARD_ROWS, *f.shape), np.float32).astype(f.dtype) for f in FIELDS}
        return partial(_rows, noise)


def _rows(noise: Mapping[str, np.ndarray], unit: Unit) -> dict[str, np.ndarray]:
    values = {name: x[: unit.rows].copy() for name, x in noise.items()}
    numbers = np.concatenate([np.arange(s.payload + s.start, s.payload + s.stop) for s in unit.segments])
    values["lowdim/action"][:, :2] = np.stack([numbers >> 16, numbers & 0xFFFF], 1)  # exact in float32
    return values


def make_store(rows: int, episode_rows: int, target: Path) -> None:
    """Build a store."""
    work = target.with_suffix(".work")
    build(make_plan(rows, episode_rows), TEXT, MakeRows(), target, work)
    shutil.rmtree(work)


def check(target: Path) -> None:
    """Verify a store."""
    assert verify(target) == []


def look(target: Path) -> None:
    """Open a store and read its tables."""
    store = open_store(target)
    assert len(store.episodes) and len(store.texts.instructions)


def read_all(target: Path) -> None:
    """Read all of a store into memory."""
    store = open_store(target)
    values = {name: store.read(name) for name in store.fields}
    action = values["lowdim/action"]
    assert (numbers(action) == np.arange(store.rows)).all()


def stream_all(target: Path) -> None:
    """Stream one epoch of all of a store; see that each row comes once."""
    store = open_store(target)
    seen = np.zeros(store.rows, np.uint8)
    for batch in stream([store], store.fields, 4096, STREAM_BYTES, seed=0):
        assert (numbers(batch.values["lowdim/action"]) == batch.rows).all()
        seen[batch.rows] += 1
    assert (seen == 1).all()


def numbers(action: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows as `_rows` wrote them."""
    return (action[:, 0].astype(np.int64) << 16) + action[:, 1].astype(np.int64)


if __name__ == "__main__":
    main()
