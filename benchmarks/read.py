"""How fast a pooled store comes into memory, beside np.fromfile of the same files and zarr-python itself.

    python -m benchmarks.read [--rows 262144] [--folder DIR]

A store of two cameras with 512 features, as ViT-B/16 gives them, is written once and read by turns: from the page cache
("warm"), and after the kernel was asked to forget the files ("cold"). All rates are of the bytes of the values.
Writes benchmarks/results/read.json.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cache import Store, open_store, schema, stream
from cache.build import build
from cache.plan import Plan
from cache.units import Episode, Unit
from pipeline.provenance import cpu_name, versions

FIELDS = schema.fields(("agentview", "eye_in_hand"), 1, 512)
SHARD_ROWS, CHUNK_ROWS = 32768, 1024
STREAM_BYTES = 256 << 20


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=262_144)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the temporary directory)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/read.json"))
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="bench-read-", dir=args.folder))
    try:
        result = measure(write(folder, args.rows), args.rounds)
    finally:
        shutil.rmtree(folder)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def write(folder: Path, rows: int) -> Store:
    """Build a store of noise."""
    plan = Plan(
        identity={"benchmark": "read"},
        fields=FIELDS,
        episodes=tuple(Episode(128, 0, f"demo_{i}", str(i)) for i in range(rows // 128)),
        instructions=("none",),
        task_ids=(0,),
        shard_rows=SHARD_ROWS,
        chunk_rows=CHUNK_ROWS,
    )
    build(plan, np.ones((1, 512), np.float32), MakeNoise(), folder / "s.zarr", folder / "work")
    return open_store(folder / "s.zarr")


@dataclass(frozen=True)
class MakeNoise:
    """A fake encoder."""

    def __call__(self) -> Callable[[Unit], dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        noise = {f.name: rng.standard_normal((SHARD_ROWS, *f.shape), np.float32).astype(f.dtype) for f in FIELDS}
        return lambda unit: {name: values[: unit.rows] for name, values in noise.items()}


def measure(store: Store, rounds: int) -> dict[str, Any]:
    """Return the figures."""
    load = round(os.getloadavg()[0], 1)
    files = [Path(store.location) / store.shard_key(n, unit) for n in store.fields for unit in range(store.units)]
    size = sum(store.rows * store.layout(name).row_bytes for name in store.fields)
    ways: dict[str, Callable[[], object]] = {
        "np_fromfile": lambda: [np.fromfile(path, np.uint8) for path in files],
        "store_read": lambda: [store.read(name) for name in store.fields],
        "stream": partial(stream_all, store),
        "zarr_python": lambda: [store.array(name)[: store.rows] for name in store.fields],
    }
    rates: dict[str, dict[str, list[float]]] = {"warm": {}, "cold": {}}
    for name, way in ways.items():  # the first of all brings the files into the page cache
        way()
        rates["warm"][name], rates["cold"][name] = [], []
    for _ in range(rounds):
        for temperature, of in rates.items():
            for name, way in ways.items():
                if temperature == "cold":
                    forget(files)
                of[name].append(round(size / seconds(way) / 1e9, 3))
            ways["np_fromfile"]()  # warm again
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before": load},
        "versions": {name: versions()[name] for name in ("python", "numpy", "zarr")},
        "bytes": size,
        "shards": len(files),
        "gb_per_s": rates,
        "store_read_share_of_np_fromfile": {
            temperature: share(of["store_read"], of["np_fromfile"]) for temperature, of in rates.items()
        },
        "store_read_times_zarr_python": {
            temperature: share(of["store_read"], of["zarr_python"]) for temperature, of in rates.items()
        },
    }


def stream_all(store: Store) -> None:
    """Stream one epoch in bounded memory."""
    for _ in stream([store], store.fields, 1024, STREAM_BYTES, seed=0):
        pass


def forget(files: list[Path]) -> None:
    """Drop the files from the page cache; they are on the disk already. It takes no privilege."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def share(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios, round by round."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2)


if __name__ == "__main__":
    main()
