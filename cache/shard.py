"""Write one unit: one whole shard of every row array. Runs on a worker."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.decode import shard_key
from cache.errors import StoreError, not_written
from cache.ledger import Receipt, fsync_directory, fsync_file
from cache.schema import Field
from cache.units import Unit

Rows = Callable[[Unit], Mapping[str, np.ndarray]]
"""Computes a unit: field name -> (unit.rows, *field.shape). Must be a pure function of the unit."""


@dataclass(frozen=True)
class Task:
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
            group = zarr.open_group(spec.store, mode="r+", zarr_format=3)
            found = group.attrs.get("fingerprint")
        except FileNotFoundError:
            found = None
        if found != spec.fingerprint:
            raise StoreError(
                f"{spec.store}: this worker does not see the store that is being built (fingerprint "
                f"{str(found)[:12]}, not {spec.fingerprint[:12]}). Workers need the same file system as the stage."
            )
        self._arrays: dict[str, Any] = {field.name: group[field.name] for field in spec.fields}
        self._rows = spec.factory()

    def close(self) -> None:
        """Close what computes the rows."""
        if hasattr(self._rows, "close"):
            self._rows.close()

    def write(self, task: Task) -> Receipt:
        """Compute and write a unit; its shards are on the disk when this returns.

        Raises:
            StoreError: rows of another shape or type than the schema's, not finite, or no room on the disk.
        """
        started = time.perf_counter()
        unit = task.unit
        rows = self._rows(unit)
        if set(rows) != set(self._arrays):
            raise StoreError(f"unit {unit.index}: got {sorted(rows)}, the store has {sorted(self._arrays)}")
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
        shard = np.full((self._spec.shard_rows, *field.shape), np.nan, field.dtype)
        shard[: unit.rows] = values
        array = self._arrays[field.name]
        path = self._root / shard_key(field.name, array.ndim, unit.index)
        start = unit.index * self._spec.shard_rows
        try:
            array[start : start + self._spec.shard_rows] = shard  # a whole shard: written once, replaced atomically
            fsync_file(path)
            fsync_directory(path.parent)
        except OSError as error:
            raise not_written(path, error) from error
        content = path.read_bytes()
        return len(content), hashlib.sha256(content).hexdigest()


def write_unit(writer: Writer, task: Task) -> Receipt:
    """Return `writer.write(task)`: what an executor calls."""
    return writer.write(task)
