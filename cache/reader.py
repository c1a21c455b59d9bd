"""Open a finished store and read it, refusing what is damaged."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.errors import StoreError
from cache.schema import SCHEMA_VERSION, check_codecs

REBUILD = "Build it: python -m stages.embed"


@dataclass(frozen=True)
class Episodes:
    """The episode index: start, length, task (E,) int64; source and digest, E strings each.

    Rows `start : start + length` of every row array are the episode. `task` is a row of `Texts`.
    """

    start: np.ndarray
    length: np.ndarray
    task: np.ndarray
    source: list[str]
    digest: list[str]

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Texts:
    """The instructions: embedding (K, D) float32, K strings, and the benchmark's task numbers (K,) int64."""

    embedding: np.ndarray
    instructions: list[str]
    task_ids: np.ndarray


def open_store(location: str | Path) -> "Store":
    """Open the store at a path or URL, read-only.

    Raises:
        StoreError: nothing there, half built, of another schema version, or not made of whitelisted Zarr v3 codecs.
    """
    where = str(location)
    try:
        root = zarr.open_group(where, mode="r", zarr_format=3)
    except FileNotFoundError:
        raise StoreError(f"{where}: no embedding store there. {REBUILD}") from None
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise StoreError(f"{where}: cannot be opened as Zarr v3: {error}. {REBUILD}") from error
    found = root.attrs.get("schema")
    if found != SCHEMA_VERSION:
        raise StoreError(f"{where}: has schema {found!r}, this version reads {SCHEMA_VERSION}. {REBUILD}")
    store = Store(where, root)
    for name in (*store.fields, *TABLES):
        store.array(name)
    return store


TABLES = (
    "episode/start",
    "episode/length",
    "episode/task",
    "episode/source",
    "episode/digest",
    "text/embedding",
    "text/instruction",
    "text/task",
    "integrity/sha256",
)


class Store:
    """A finished store.

    Attributes:
        location: path or URL.
        attrs: root attributes as plain values: schema, fingerprint, rows, identity, ...
    """

    def __init__(self, location: str, root: zarr.Group) -> None:
        self.location = location
        self.root = root
        self.attrs: dict[str, Any] = dict(root.attrs)

    @property
    def fingerprint(self) -> str:
        """Digest of all that the content depends on."""
        return str(self.attrs["fingerprint"])

    @property
    def identity(self) -> dict[str, Any]:
        """What made the rows: encoder, transform, obs_shift, views, source."""
        return self.attrs["identity"]

    @property
    def rows(self) -> int:
        """N: rows with data."""
        return int(self.attrs["rows"])

    @property
    def shard_rows(self) -> int:
        """Rows per shard."""
        return int(self.attrs["shard_rows"])

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the row arrays, such as "image/agentview" and "lowdim/action"."""
        return tuple(self.attrs["fields"])

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(name.removeprefix("image/") for name in self.fields if name.startswith("image/"))

    @property
    def dim(self) -> int:
        """D: width of the features."""
        return int(self.array("text/embedding").shape[1])

    def array(self, name: str) -> zarr.Array:
        """Return the Zarr array itself. Slice whole shards of it; list indices on sharded arrays are slow.

        Raises:
            StoreError: no such array, or one of another format.
        """
        try:
            array = self.root[name]
        except KeyError:
            if name == "integrity/sha256":
                raise StoreError(f"{self.location}: the build was never finished. {REBUILD}") from None
            raise StoreError(f"{self.location}: no array {name!r}; it has {', '.join(self.fields)}") from None
        except ValueError as error:
            raise StoreError(f"{self.location}: {name} cannot be opened: {error}. {REBUILD}") from error
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.location}: {name!r} is a group; it has {', '.join(self.fields)}")
        check_codecs(array, self.location)
        return array

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return rows `start:stop` of a row array, (n, *row shape), shard by shard into memory allocated once.

        Raises:
            StoreError: a shard that is missing or damaged; it is named.
        """
        array = self.array(name)
        stop = self.rows if stop is None else min(stop, self.rows)
        out = np.empty((max(stop - start, 0), *array.shape[1:]), array.dtype)
        for low in range(start - start % self.shard_rows, stop, self.shard_rows):
            first, last = max(low, start), min(low + self.shard_rows, stop)
            if first >= last:
                break
            out[first - start : last - start] = self._shard(array, first, last)
        return out

    @cached_property
    def episodes(self) -> Episodes:
        """The episode index."""
        return Episodes(
            self._table("episode/start"),
            self._table("episode/length"),
            self._table("episode/task"),
            [str(text) for text in self._table("episode/source")],
            [str(text) for text in self._table("episode/digest")],
        )

    @cached_property
    def texts(self) -> Texts:
        """The instructions and their embeddings."""
        instructions = [str(text) for text in self._table("text/instruction")]
        return Texts(self._table("text/embedding"), instructions, self._table("text/task"))

    def _shard(self, array: zarr.Array, start: int, stop: int) -> np.ndarray:
        where = f"{self.location}: shard {start // self.shard_rows} of {array.path}"
        try:
            values = np.asarray(array[start:stop])
        except Exception as error:  # whatever a damaged file makes the decoder raise
            raise StoreError(f"{where} is damaged: {error}. Delete the store and {REBUILD.lower()}") from error
        # A missing chunk, or a missing file, comes as fill values. Data are finite, so one value of each chunk tells.
        probe = values.reshape(len(values), -1)[:, 0]
        if np.isnan(probe[0]) or np.isnan(probe[(-start) % array.chunks[0] :: array.chunks[0]]).any():
            raise StoreError(f"{where} is missing, or lacks a chunk. Delete the store and {REBUILD.lower()}")
        return values

    def _table(self, name: str) -> np.ndarray:
        array = self.array(name)
        try:
            values = np.asarray(array[...])
        except Exception as error:
            raise StoreError(f"{self.location}: {name} is damaged: {error}. Delete it and {REBUILD.lower()}") from error
        if values.dtype.kind == "f":
            missing = bool(np.isnan(values).any())
        elif values.dtype.kind == "i":
            missing = bool((values < 0).any())
        else:
            missing = values.dtype.kind != "u" and any(not str(text) for text in values)
        if missing:
            raise StoreError(f"{self.location}: {name} is missing. Delete the store and {REBUILD.lower()}")
        return values
