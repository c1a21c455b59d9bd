"""Check a store against itself: every shard's digest, checksums, values and counts."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import StoreError
from cache.reader import Store, open_store
from cache.shard import shard_path


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `unit` is the shard's number, or None if no single shard is concerned."""

    array: str
    unit: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.array}{'' if self.unit is None else f' shard {self.unit}'}: {self.text}"


def verify(location: str | Path) -> list[Problem]:
    """Read all of a local store; return what is wrong with it, nothing for a sound one. Memory: one shard.

    Raises:
        StoreError: it cannot be opened at all.
    """
    store = open_store(location)
    problems = list(_tables(store))
    expected = store._table("integrity/sha256")
    units = -(-store.rows // store.shard_rows)
    if expected.shape != (units, len(store.fields), 32):
        return [*problems, Problem("integrity/sha256", None, f"has shape {expected.shape}, not {units} shards")]
    for column, name in enumerate(store.fields):
        rows = store.array(name).shape[0]
        if rows != units * store.shard_rows:
            problems.append(Problem(name, None, f"has {rows} rows, not {units} shards of {store.shard_rows}"))
            continue
        for unit in range(units):
            problems += _shard(store, name, unit, expected[unit, column])
    return problems


def _shard(store: Store, name: str, unit: int, sha256: np.ndarray) -> Iterator[Problem]:
    path = shard_path(Path(store.location), store.array(name), unit)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        yield Problem(name, unit, f"{path} is missing")
        return
    if hashlib.sha256(content).digest() != sha256.tobytes():
        yield Problem(name, unit, f"{path} has changed since it was written (SHA-256)")
    start = unit * store.shard_rows
    try:
        values = store.read(name, start, start + store.shard_rows)
    except StoreError as error:
        yield Problem(name, unit, str(error))
        return
    if not np.isfinite(values).all():
        yield Problem(name, unit, "has values that are not finite")
    if name.startswith("image/"):
        norms = np.linalg.norm(values.astype(np.float32), axis=-1)
        if not (norms > 0).all():
            yield Problem(name, unit, f"has {int((norms == 0).sum())} features of norm zero")


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
