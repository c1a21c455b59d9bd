"""Work units: which rows of which episodes make up a shard. A unit is a pure function of the plan and its number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode to store.

    Attributes:
        rows: number of rows, at least 1.
        task: row of the store's text table.
        source: where it comes from, for people: file/demo.
        digest: of its data: equal digests mean equal data.
        payload: what the encoding side needs to read it; must pickle; not stored.
    """

    rows: int
    task: int
    source: str
    digest: str
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start:stop` of one episode."""

    payload: Any
    digest: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unit:
    """One shard of every row array: `rows` rows made of `segments`, one after the other."""

    index: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Rows with data; the shard is padded beyond them."""
        return sum(segment.stop - segment.start for segment in self.segments)


def starts(episodes: Sequence[Episode]) -> np.ndarray:
    """Return the first row of each episode, and the row after the last: (E + 1,) int64."""
    lengths = np.array([episode.rows for episode in episodes], np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def unit_count(episodes: Sequence[Episode], shard_rows: int) -> int:
    """Return the number of shards that the episodes fill, the last one in part."""
    return -(-int(starts(episodes)[-1]) // shard_rows)


def units(episodes: Sequence[Episode], shard_rows: int) -> Iterator[Unit]:
    """Yield the units in order. Each is `shard_rows` long but the last; an episode may span several."""
    edges = starts(episodes)
    for index in range(unit_count(episodes, shard_rows)):
        low, high = index * shard_rows, min((index + 1) * shard_rows, int(edges[-1]))
        first = int(np.searchsorted(edges, low, side="right")) - 1
        last = int(np.searchsorted(edges, high, side="left"))
        segments = tuple(
            Segment(
                episodes[e].payload,
                episodes[e].digest,
                max(low - int(edges[e]), 0),
                min(high, int(edges[e + 1])) - int(edges[e]),
            )
            for e in range(first, last)
        )
        yield Unit(index, segments)
