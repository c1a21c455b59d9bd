"""Check a store against itself: the digest of every file, checksums and values of every shard, and nothing besides."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cache.codec import Damage, read_rows
from cache.files import MemoryFile, unreachable
from cache.reader import Store, open_store
from cache.schema import DIGESTS

THREADS = min(os.cpu_count() or 1, 8)
"""Taking a SHA-256 is most of the work, and lets other threads run."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: of shard `unit` of an array, or of a file that is no shard, whose path is `array`."""

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
    shards = {store.shard_key(name, unit): (name, unit) for name in store.fields for unit in range(store.units)}
    problems = []
    if not (np.linalg.norm(store.texts.embedding, axis=-1) > 0).all():
        problems.append(Problem("text/embedding", None, "has a row of norm zero"))
    known = shards.keys() | store.digests.keys() | {f"{DIGESTS}/c/0"}  # the last has no digest, but a crc32c
    problems += [Problem(key, None, "is no file of the store; delete it") for key in sorted(store.files.keys() - known)]
    with ThreadPoolExecutor(THREADS) as pool:
        others = sorted(store.digests.keys() - shards.keys())
        found = pool.map(partial(_changed, store), others)
        problems += [Problem(key, None, text) for key, text in zip(others, found, strict=True) if text]
        found = pool.map(partial(_shard, store), *zip(*shards.values(), strict=True))
        problems += [Problem(*shard, text) for shard, text in zip(shards.values(), found, strict=True) if text]
    return problems


def _changed(store: Store, key: str) -> str | None:
    """Return what is wrong with a file that is no shard, None if nothing is."""
    content, problem = _read(store, key)
    return problem or _differs(store, key, content)


def _shard(store: Store, name: str, unit: int) -> str | None:
    """Return what is wrong with a shard, None if nothing is."""
    key, layout = store.shard_key(name, unit), store.layout(name)
    content, problem = _read(store, key)
    if problem:
        return problem
    values = np.empty((min(store.shard_rows, store.rows - unit * store.shard_rows), *layout.row_shape), layout.dtype)
    try:
        read_rows(MemoryFile(content), layout, 0, values)
    except Damage as damage:
        return f"{store.files.name(key)} {damage}"
    return _differs(store, key, content) or _values(values, name.startswith("image/"), layout.chunk_rows)


def _read(store: Store, key: str) -> tuple[bytes, str | None]:
    """Return the content of a file, and why there is none."""
    where = store.files.name(key)
    try:
        return store.files.read(key), None
    except FileNotFoundError:
        return b"", f"{where} is missing"
    except OSError as error:
        return b"", f"{where} cannot be read: {error}"
    except Exception as error:  # of the network: it says nothing of the file
        raise unreachable(where, error) from error


def _differs(store: Store, key: str, content: bytes) -> str | None:
    if hashlib.sha256(content).hexdigest() != store.digests.get(key):
        return f"{store.files.name(key)} has changed since it was written (SHA-256)"
    return None


def _values(values: np.ndarray, features: bool, block: int) -> str | None:
    """Return what is wrong with the values of a shard. Block by block, so that copies are small."""
    for start in range(0, len(values), block):
        part = values[start : start + block].astype(np.float32, copy=False)
        if not np.isfinite(part).all():
            return "has values that are not finite"
        if features and (zero := int((np.linalg.norm(part, axis=-1) == 0).sum())):
            return f"has {zero} features of norm zero in rows {start} to {start + len(part) - 1}"
    return None
