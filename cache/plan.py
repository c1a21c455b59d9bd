"""What a store is a function of, as one digest. Equal fingerprints: equal bytes may be expected."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from cache.errors import StoreError
from cache.schema import ROWS_VERSION, SCHEMA_VERSION, Field
from cache.units import Episode, Unit, starts, unit_count, units


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space: equal values give equal text.

    Raises:
        ValueError: NaN or infinity, which are not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str = "in the store", prefix: str = ""
) -> list[str]:
    """Return where two trees of plain values differ, one line each, with both values."""
    found: list[str] = []
    for key in dict.fromkeys((*stored, *wanted)):
        a, b, name = stored.get(key), wanted.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, where, f"{name}.")
        elif a != b:
            found.append(f"{name} is {a!r} {where}, {b!r} now")
    return found


@dataclass(frozen=True)
class Plan:
    """Everything a store's bytes depend on, before any row is computed.

    Attributes:
        identity: JSON-able: encoder, transform id, obs_shift, views, suite, how the source was made.
        fields: row arrays.
        episodes: in the order of their rows.
        instructions: K texts; `Episode.task` counts them.
        task_ids: the benchmark's number of each.
        shard_rows: rows per shard, the unit of write.
        chunk_rows: rows per chunk, the unit of read, of fields with narrow rows; divides shard_rows. Fields with wide
            rows have fewer (schema.Field.chunk_rows).
    """

    identity: dict[str, Any]
    fields: tuple[Field, ...]
    episodes: tuple[Episode, ...]
    instructions: tuple[str, ...]
    task_ids: tuple[int, ...]
    shard_rows: int
    chunk_rows: int

    def __post_init__(self) -> None:
        if not self.episodes:
            raise StoreError("there is no episode to store: no demonstration is usable")
        if short := [episode.source for episode in self.episodes if episode.rows < 1]:
            raise StoreError(f"{short[0]} has no rows; leave it out")
        if self.shard_rows % self.chunk_rows:
            raise StoreError(f"shard_rows {self.shard_rows} is not a multiple of chunk_rows {self.chunk_rows}")

    @property
    def rows(self) -> int:
        """N without padding."""
        return int(starts(self.episodes)[-1])

    @property
    def padded_rows(self) -> int:
        """N, in whole shards."""
        return self.unit_count * self.shard_rows

    @property
    def bytes(self) -> int:
        """Of all rows: what the store takes at least."""
        return self.rows * sum(field.row_bytes for field in self.fields)

    @property
    def unit_count(self) -> int:
        """Number of work units: shards per row array."""
        return unit_count(self.episodes, self.shard_rows)

    def units(self) -> Iterator[Unit]:
        """Yield the work units in order."""
        return units(self.episodes, self.shard_rows)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over identity, layout, sources and instructions."""
        return digest({**self._base, "episodes": self._sources(), "instructions": self._instructions()})

    def unit_key(self, unit: Unit) -> str:
        """Return the digest of what one shard's bytes depend on: it stays when episodes elsewhere come or go."""
        parts = [[segment.digest, segment.start, segment.stop] for segment in unit.segments]
        return digest({"base": self._base_digest, "segments": parts})

    def attributes(self) -> dict[str, Any]:
        """Return the root attributes of the store."""
        return {
            "schema": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "episodes": len(self.episodes),
            "shard_rows": self.shard_rows,
            "chunk_rows": self.chunk_rows,
            "fields": [field.name for field in self.fields],
            "identity": self.identity,
        }

    @cached_property
    def _base(self) -> dict[str, Any]:
        return {
            "schema": ROWS_VERSION,
            "identity": self.identity,
            "fields": [asdict(field) for field in self.fields],
            "shard_rows": self.shard_rows,
            "chunk_rows": self.chunk_rows,
        }

    @cached_property
    def _base_digest(self) -> str:
        return digest(self._base)

    def _sources(self) -> Sequence[Any]:
        return [[e.rows, e.task, e.source, e.digest] for e in self.episodes]

    def _instructions(self) -> Sequence[Any]:
        return [list(pair) for pair in zip(self.task_ids, self.instructions, strict=True)]
