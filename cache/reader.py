"""Open a finished store and read it, refusing what is damaged."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.codec import Damage, Layout, layout, read_rows, shard_key
from cache.errors import StoreError
from cache.files import LocalFiles, RemoteFiles, open_files, unreachable
from cache.plan import Plan, differences
from cache.schema import DIGESTS, SCHEMA_VERSION, Field, check_codecs
from cache.units import Episode, starts

REBUILD = "Build it: python -m stages.embed"
REPLACE = "Delete the store and build it: python -m stages.embed; of a copy, copy it again"
REPAIR = "Make the shard anew: python -m stages.embed --repair; of a copy, copy it again"


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
    """Open the store at a path or a URL that fsspec knows (s3://bucket/x.zarr), read-only.

    The fingerprint is computed again, so that no change of attributes, episodes or instructions goes unnoticed.

    Raises:
        StoreError: nothing there, half built, of another schema version, not made of whitelisted Zarr v3 codecs,
            changed since it was written, or a URL that does not answer.
    """
    where = str(location)
    files = open_files(where)
    try:
        root = zarr.open_group(files.zarr_store(), mode="r", zarr_format=3)
    except FileNotFoundError:
        bucket = ", or no such bucket" if isinstance(files, RemoteFiles) else ""
        raise StoreError(f"{where}: no embedding store there{bucket}. {REBUILD}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{where}: cannot be opened as Zarr v3: {error}. {REBUILD}") from error
    except Exception as error:  # of the network, of any library behind fsspec
        raise unreachable(where, error) from error
    found = root.attrs.get("schema")
    if found != SCHEMA_VERSION:
        raise StoreError(f"{where}: has schema {found!r}, this version reads {SCHEMA_VERSION}. {REBUILD}")
    store = Store(where, root, files)
    try:
        _check(store)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StoreError(f"{where}: its metadata are damaged: {type(error).__name__}: {error}. {REPLACE}") from error
    return store


def _check(store: "Store") -> None:
    for name in TABLES:
        store.array(name)
    for name in store.fields:
        store.layout(name)
    if changed := differences(store.attrs, store.plan.attributes(), "in its attributes"):
        raise StoreError(
            f"{store.location}/zarr.json: the attributes, or the tables of episodes and texts, have changed since they "
            f"were written: {'; '.join(changed)}. {REPLACE}"
        )
    if not np.array_equal(store.episodes.start, starts(store.plan.episodes)[:-1]):
        raise StoreError(f"{store.location}/episode/start: episodes do not lie one after the other. {REPLACE}")


TABLES = (
    "episode/start",
    "episode/length",
    "episode/task",
    "episode/source",
    "episode/digest",
    "text/embedding",
    "text/instruction",
    "text/task",
    DIGESTS,
)


@dataclass(frozen=True)
class Piece:
    """Rows `start : start + len(out)` of a row array, all of one shard, and where to put them."""

    name: str
    start: int
    out: np.ndarray


class Store:
    """A finished store.

    Attributes:
        location: path or URL.
        attrs: root attributes as plain values: schema, fingerprint, rows, identity, ...
        files: access to the files it is made of.
    """

    def __init__(self, location: str, root: zarr.Group, files: LocalFiles | RemoteFiles) -> None:
        self.location = location
        self.attrs: dict[str, Any] = dict(root.attrs)
        self.files = files
        self._root = root
        self._arrays: dict[str, zarr.Array] = {}
        self._layouts: dict[str, Layout] = {}

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

    @property
    def units(self) -> int:
        """Shards per row array."""
        return -(-self.rows // self.shard_rows)

    def array(self, name: str) -> zarr.Array:
        """Return the Zarr array itself. `read` is faster; list indices on sharded arrays are slow.

        Raises:
            StoreError: no such array, or one of another format.
        """
        if name not in self._arrays:
            self._arrays[name] = self._open(name)
        return self._arrays[name]

    def layout(self, name: str) -> Layout:
        """Return how the shards of a row array are made up.

        Raises:
            StoreError: no such array, or one of another format.
        """
        if name not in self._layouts:
            found = layout(self.array(name), self.location)
            shard_rows, rows = found.chunk_rows * found.chunks, self.array(name).shape[0]
            if (shard_rows, rows) != (self.shard_rows, self.units * self.shard_rows):
                raise StoreError(
                    f"{self.location}: {name} has {rows} rows, {shard_rows} a shard; by the store's attributes there "
                    f"are {self.units} shards of {self.shard_rows}. {REPLACE}"
                )
            self._layouts[name] = found
        return self._layouts[name]

    def read(self, name: str, start: int = 0, stop: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Return rows `start:stop` of a row array, (n, *row shape): only the chunks with these rows are read.

        Args:
            name: one of `fields`.
            start: first row, not negative.
            stop: row after the last; None, or one beyond the data, stands for `rows`.
            out: C-contiguous memory of that shape and the array's dtype to read into; allocated if None.

        Raises:
            StoreError: a shard that is missing or damaged; it is named, and so is the chunk.
        """
        shape = self.layout(name)
        stop = self.rows if stop is None else min(stop, self.rows)
        expected = (max(stop - start, 0), *shape.row_shape)
        if start < 0:
            raise ValueError(f"start is {start}; rows are counted from the front")
        if out is None:
            out = np.empty(expected, shape.dtype)
        elif out.shape != expected:
            raise ValueError(f"out has shape {out.shape}, rows {start}:{stop} of {name} have {expected}")
        edges = [start, *range(start - start % self.shard_rows + self.shard_rows, stop, self.shard_rows), stop]
        self.fill([Piece(name, a, out[a - start : b - start]) for a, b in pairwise(edges) if a < b])
        return out

    def fill(self, pieces: Sequence["Piece"]) -> None:
        """Read all the pieces, from object storage several at a time.

        Raises:
            StoreError: as `read`.
        """
        if self.files.readers == 1 or len(pieces) == 1:
            for piece in pieces:
                self._fill(piece)
            return
        with ThreadPoolExecutor(self.files.readers) as pool:
            for _ in pool.map(self._fill, pieces):
                pass

    def shard_key(self, name: str, unit: int) -> str:
        """Return the path of a shard below the store's root."""
        return shard_key(name, self.array(name).ndim, unit)

    @cached_property
    def episodes(self) -> Episodes:
        """The episode index."""
        return Episodes(
            self.table("episode/start"),
            self.table("episode/length"),
            self.table("episode/task"),
            [str(text) for text in self.table("episode/source")],
            [str(text) for text in self.table("episode/digest")],
        )

    @cached_property
    def texts(self) -> Texts:
        """The instructions and their embeddings."""
        instructions = [str(text) for text in self.table("text/instruction")]
        return Texts(self.table("text/embedding"), instructions, self.table("text/task"))

    @cached_property
    def plan(self) -> Plan:
        """What the store is a function of, by its attributes and tables as they are now."""
        episodes, texts = self.episodes, self.texts
        columns = episodes.length.tolist(), episodes.task.tolist(), episodes.source, episodes.digest
        try:
            return Plan(
                identity=self.identity,
                fields=tuple(self._field(name) for name in self.fields),
                episodes=tuple(Episode(*row) for row in zip(*columns, strict=True)),
                instructions=tuple(texts.instructions),
                task_ids=tuple(texts.task_ids.tolist()),
                shard_rows=self.shard_rows,
                chunk_rows=self.attrs["chunk_rows"],
            )
        except StoreError as error:
            raise StoreError(f"{self.location}: its metadata are damaged: {error}. {REPLACE}") from error

    def _field(self, name: str) -> Field:
        array = self.array(name)
        axes: Any = array.metadata.to_dict().get("dimension_names")
        return Field(name, array.shape[1:], str(array.dtype), tuple(axes or ()))

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every file but the table of them, by its path below the store's root."""
        lines = map(str, self.table(DIGESTS))
        return {path: sha256 for sha256, _, path in (line.partition("  ") for line in lines)}

    def _fill(self, piece: "Piece") -> None:
        unit, within = divmod(piece.start, self.shard_rows)
        key = self.shard_key(piece.name, unit)
        try:
            with self.files.open(key) as file:
                read_rows(file, self.layout(piece.name), within, piece.out)
        except FileNotFoundError:
            raise self._damaged(piece, "is missing") from None
        except Damage as damage:
            raise self._damaged(piece, str(damage)) from None
        except (ValueError, StoreError):
            raise
        except Exception as error:  # of the disk, of the network
            raise unreachable(self.files.name(key), error) from error

    def _damaged(self, piece: "Piece", what: str) -> StoreError:
        unit = piece.start // self.shard_rows
        file = self.files.name(self.shard_key(piece.name, unit))
        return StoreError(f"{file}: shard {unit} of {piece.name} {what}. {REPAIR}")

    def _open(self, name: str) -> zarr.Array:
        try:
            array = self._root[name]
        except KeyError:
            if name == DIGESTS:
                raise StoreError(f"{self.location}: the build was never finished. {REBUILD}") from None
            if name in (*TABLES, *self.fields):
                raise StoreError(f"{self.location}: {name} is missing. {REPLACE}") from None
            raise StoreError(f"{self.location}: no array {name!r}; it has {', '.join(self.fields)}") from None
        except Exception as error:
            raise StoreError(f"{self.location}: {name} cannot be opened: {error}. {REBUILD}") from error
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.location}: {name!r} is a group; it has {', '.join(self.fields)}")
        check_codecs(array, self.location)
        return array

    def table(self, name: str) -> np.ndarray:
        """Return a whole table, such as "episode/length".

        Raises:
            StoreError: it is missing or damaged.
        """
        array = self.array(name)
        try:
            values = np.asarray(array[...])
        except Exception as error:
            raise StoreError(f"{self.location}: {name} cannot be read: {error}. {REPLACE}") from error
        if values.dtype.kind == "f":
            missing = bool(np.isnan(values).any())
        elif values.dtype.kind == "i":
            missing = bool((values < 0).any())
        else:
            missing = values.dtype.kind != "u" and any(not str(text) for text in values)
        if missing:
            raise StoreError(f"{self.location}: {name} is missing. {REPLACE}")
        return values
