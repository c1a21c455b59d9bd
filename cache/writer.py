"""Write one unit: one whole shard of every row array. Runs on a worker."""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from cache.codec import ABSENT, CRC_BYTES, Layout, crc, layout, shard_key
from cache.errors import StoreError, not_written
from cache.ledger import Receipt, fsync_directory
from cache.schema import Field
from cache.units import Unit

Rows = Callable[[Unit], Mapping[str, np.ndarray]]
"""Computes a unit: field name -> (unit.rows, *field.shape). Must be a pure function of the unit."""


@dataclass(frozen=True)
class WorkUnit:
    """A unit and the digest of what it depends on."""

    unit: Unit
    key: str


@dataclass(frozen=True)
class MakeWriter:
    """Makes a worker's Writer; small, and pickles. `factory()` is called once per worker and gives its `Rows`."""

    store: str
    fingerprint: str
    fields: tuple[Field, ...]
    shard_rows: int
    factory: Callable[[], Rows]

    def __call__(self) -> "Writer":
        """Return the writer."""
        return Writer(self)


class Writer:
    """Computes units and writes them."""

    def __init__(self, spec: MakeWriter) -> None:
        self._spec = spec
        self._root = Path(spec.store)
        try:
            group = zarr.open_group(spec.store, mode="r", zarr_format=3)
            found = group.attrs.get("fingerprint")
        except FileNotFoundError:
            found = None
        if found != spec.fingerprint:
            raise StoreError(
                f"{spec.store}: this worker does not see the store that is being built (fingerprint "
                f"{str(found)[:12]}, not {spec.fingerprint[:12]}). Workers need the same file system as the stage."
            )
        self._layouts = {}
        for field in spec.fields:
            array = group[field.name]
            assert isinstance(array, zarr.Array)  # as create_field made it
            self._layouts[field.name] = layout(array, spec.store)
        self._rows = spec.factory()

    def close(self) -> None:
        """Close what computes the rows."""
        if hasattr(self._rows, "close"):
            self._rows.close()

    def write(self, task: WorkUnit) -> Receipt:
        """Compute and write a unit; its shards are on the disk when this returns.

        Raises:
            StoreError: rows of another shape or type than the schema's, not finite, or no room on the disk.
        """
        started = time.perf_counter()
        unit = task.unit
        rows = self._rows(unit)
        if set(rows) != set(self._layouts):
            raise StoreError(f"unit {unit.index}: got {sorted(rows)}, the store has {sorted(self._layouts)}")
        shards = {field.name: self._write(field, unit, rows[field.name]) for field in self._spec.fields}
        return Receipt(unit.index, task.key, unit.rows, shards, round(time.perf_counter() - started, 3))

    def _write(self, field: Field, unit: Unit, values: np.ndarray) -> tuple[int, str]:
        expected = (unit.rows, *field.shape)
        if values.shape != expected or values.dtype != field.dtype:
            raise StoreError(
                f"unit {unit.index}: {field.name} is {values.dtype}{values.shape}, not {field.dtype}{expected}"
            )
        if not np.isfinite(values).all():
            raise StoreError(f"unit {unit.index}: {field.name} has values that are not finite")
        content = encode_rows(self._layouts[field.name], values)
        path = self._root / shard_key(field.name, values.ndim, unit.index)
        try:
            _write_whole(path, content)
        except OSError as error:
            raise not_written(path, error) from error
        return len(content), hashlib.sha256(content.data).hexdigest()


def _write_whole(path: Path, content: np.ndarray) -> None:
    """Write a file such that it is there in full and on the disk, or not at all. Two writers of it do no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_unit(writer: Writer, task: WorkUnit) -> Receipt:
    """Return `writer.write(task)`: what an executor calls."""
    return writer.write(task)


def encode_rows(shard: Layout, values: np.ndarray) -> np.ndarray:
    """Return the file of one shard, as bytes: those that zarr-python would write, in a fraction of the time.

    Args:
        shard: its layout.
        values: (n, *row shape) of the layout's dtype, finite, n at most the rows of a shard. What is missing of the
            last chunk is filled with NaN; chunks beyond it are absent, as zarr-python has it for chunks of fill values.
    """
    rows = len(values)
    size, chunks = shard.chunk_bytes + CRC_BYTES, -(-rows // shard.chunk_rows)
    index = np.full((shard.chunks, 2), ABSENT, "<u8")
    index[:chunks, 0] = np.arange(chunks) * size
    index[:chunks, 1] = size
    file = np.empty(chunks * size + shard.index_bytes, np.uint8)
    for chunk in range(chunks):
        part = values[chunk * shard.chunk_rows : (chunk + 1) * shard.chunk_rows]
        if len(part) < shard.chunk_rows:
            padding = np.full((shard.chunk_rows - len(part), *shard.row_shape), np.nan, shard.dtype)
            part = np.concatenate([part, padding])
        _seal(file[chunk * size : (chunk + 1) * size], part)
    _seal(file[chunks * size :], index)
    return file


def _seal(out: np.ndarray, values: np.ndarray) -> None:
    """Put the values into `out`, and their checksum behind them."""
    data = out[:-CRC_BYTES]
    data[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    out[-CRC_BYTES:] = np.frombuffer(crc(data), np.uint8)
