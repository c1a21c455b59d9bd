"""Check a store against itself: every shard's digest, checksums, values and counts."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cache.codec import Damage, read_rows
from cache.files import MemoryFile, unreachable
from cache.reader import Store, open_store

THREADS = min(os.cpu_count() or 1, 8)
"""Taking a SHA-256 is most of the work, and lets other threads run."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `unit` is the shard's number, or None if no single shard is concerned."""

    array: str
    unit: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.array}{'' if self.unit is None else f' shard {self.unit}'}: {self.text}"


def verify(location: str | Path) -> list[Problem]:
    """Read all of the store at a path or URL; return what is wrong with it, nothing for a sound one.

    Memory: two shards, encoded and decoded, for each of THREADS threads.

    Raises:
        StoreError: it cannot be opened at all, or a table is missing or damaged.
    """
    store = open_store(location)
    problems = list(_tables(store))
    expected = store.table("integrity/sha256")
    if expected.shape != (store.units, len(store.fields), 32):
        return [*problems, Problem("integrity/sha256", None, f"has shape {expected.shape}, not {store.units} shards")]
    with ThreadPoolExecutor(THREADS) as pool:
        for column, name in enumerate(store.fields):
            rows = store.array(name).shape[0]
            if rows != store.units * store.shard_rows:
                text = f"has {rows} rows, not {store.units} shards of {store.shard_rows}"
                problems.append(Problem(name, None, text))
                continue
            found = pool.map(partial(_shard, store, name), range(store.units), expected[:, column])
            problems += [Problem(name, unit, text) for unit, text in enumerate(found) if text]
    return problems


def _shard(store: Store, name: str, unit: int, sha256: np.ndarray) -> str | None:
    """Return what is wrong with a shard, None if nothing is."""
    key = store.shard_key(name, unit)
    where = store.files.name(key)
    try:
        content = store.files.read(key)
    except FileNotFoundError:
        return f"{where} is missing"
    except OSError as error:
        return f"{where} cannot be read: {error}"
    except Exception as error:  # of the network: it says nothing of the shard
        raise unreachable(where, error) from error
    layout = store.layout(name)
    values = np.empty((min(store.shard_rows, store.rows - unit * store.shard_rows), *layout.row_shape), layout.dtype)
    try:
        read_rows(MemoryFile(content), layout, 0, values)
    except Damage as damage:
        return f"{where} {damage}"
    if hashlib.sha256(content).digest() != sha256.tobytes():
        return f"{where} has changed since it was written (SHA-256)"
    return _values(values, name.startswith("image/"), layout.chunk_rows)


def _values(values: np.ndarray, features: bool, block: int) -> str | None:
    """Return what is wrong with the values of a shard. Block by block, so that copies are small."""
    for start in range(0, len(values), block):
        part = values[start : start + block].astype(np.float32, copy=False)
        if not np.isfinite(part).all():
            return "has values that are not finite"
        if features and (zero := int((np.linalg.norm(part, axis=-1) == 0).sum())):
            return f"has {zero} features of norm zero in rows {start} to {start + len(part) - 1}"
    return None


def _tables(store: Store) -> Iterator[Problem]:
    episodes, texts = store.episodes, store.texts
    ends = episodes.start + episodes.length
    if episodes.start[0] != 0 or not (episodes.start[1:] == ends[:-1]).all() or (episodes.length < 1).any():
        yield Problem("episode/start", None, "episodes do not lie one after the other")
    if ends[-1] != store.rows:
        yield Problem("episode/length", None, f"the lengths sum to {ends[-1]}, the store has {store.rows} rows")
    if (episodes.task >= len(texts.instructions)).any():
        yield Problem("episode/task", None, f"names a text beyond the {len(texts.instructions)} there are")
    if not (np.linalg.norm(texts.embedding, axis=-1) > 0).all():
        yield Problem("text/embedding", None, "has a row of norm zero")
