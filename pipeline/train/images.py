"""Image features of a table's rows, in memory or read as they are needed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.reader import Store
from cache.stream import stream
from pipeline.train.plan import epoch_batches

MIB = 2**20
Features = dict[str, Tensor]
"""Camera -> (B, [L,] [P,] D) float16, or, to train through CLIP, frames (B, [L,] H, W, 3) uint8."""


Drawn = Mapping[str, Int[Tensor, "B *time"]]
"""Camera -> the number of a view of each row; view 0 is the frame as it is."""


def pick(features: Features, drawn: Drawn) -> Features:
    """Return one view of each row of features that are of all views, (B, V, [P,] D)."""
    return {name: x[torch.arange(len(x), device=x.device), drawn[name].to(x.device)] for name, x in features.items()}


@runtime_checkable
class Images(Protocol):
    """Where the image features of a table's rows come from."""

    @property
    def dim(self) -> int:
        """D, width of a feature."""

    @property
    def views(self) -> int:
        """V, views of a frame that there are to draw from; 1: the frame as it is."""

    def to(self, device: torch.device) -> "Images":
        """Return the same images, on `device` if they are held in memory."""

    def at(self, rows: Int[Tensor, "B *time"], drawn: Drawn | None = None) -> Features:
        """Return the features of these rows: of the frames as they are, or of a view of each."""

    def epoch(
        self, counts: Int[Tensor, " N"], batch_size: int, seed: int, epoch: int
    ) -> Iterator[tuple[Int[Tensor, " B"], Features | None]]:
        """Yield the global batches of an epoch, rows and their features: row i counts[i] times, the last one smaller.

        None for features that `at` has at hand, so that each process takes its own share alone; where there are several
        views, else, those of all, (B, V, [P,] D). The order is a function of the arguments.
        """


@dataclass(frozen=True)
class ResidentImages:
    """All of them in memory: `features` of every row, (N, [P,] D), or, of several views, (N, V, [P,] D)."""

    features: Features
    views: int = 1

    @property
    def dim(self) -> int:
        """D, width of a feature."""
        return next(iter(self.features.values())).shape[-1]

    def to(self, device: torch.device) -> "ResidentImages":
        """Return them on `device`."""
        return ResidentImages({name: x.to(device) for name, x in self.features.items()}, self.views)

    def at(self, rows: Int[Tensor, "B *time"], drawn: Drawn | None = None) -> Features:
        """Return the features of these rows."""
        if self.views == 1:
            return {name: x[rows.to(x.device)] for name, x in self.features.items()}
        return {
            name: x[rows.to(x.device), 0 if drawn is None else drawn[name].to(x.device)]
            for name, x in self.features.items()
        }

    def epoch(
        self, counts: Int[Tensor, " N"], batch_size: int, seed: int, epoch: int
    ) -> Iterator[tuple[Int[Tensor, " B"], None]]:
        """Yield the batches of a random permutation."""
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        for batch in epoch_batches(rows, batch_size, seed, epoch):
            yield batch, None


@dataclass(frozen=True)
class Span:
    """Rows of a table that follow each other in a store: table row `first` + i is row `start` + i of store `store`."""

    store: int
    start: int
    first: int
    length: int


class StreamedImages:
    """Read from the stores, with bounded memory, in an order that a window of rows allows (see cache/stream.py)."""

    def __init__(
        self,
        stores: Sequence[Store],
        spans: Sequence[Span],
        episodes: Sequence[Sequence[int]],
        names: Mapping[str, str],
        memory_bytes: int,
        views: int = 1,
    ) -> None:
        """Stream from `stores`.

        Args:
            stores: of one encoder.
            spans: the table's episodes, in its order.
            episodes: of each store, the numbers of the table's episodes.
            names: camera -> array of its features.
            memory_bytes: bound on the features that are held at a time.
            views: to draw from.
        """
        self.views = views
        self._stores = stores
        self._episodes = episodes
        self._names = names
        self._memory_bytes = memory_bytes
        before = np.cumsum([0, *(store.rows for store in stores)])
        self._first = np.array([span.first for span in spans])
        self._store = np.array([span.store for span in spans])
        self._start = np.array([span.start for span in spans])
        self._number = before[self._store] + self._start  # as `stream` counts

    @property
    def dim(self) -> int:
        """D, width of a feature."""
        return next(iter(self._shapes().values()))[-1]

    def to(self, device: torch.device) -> "StreamedImages":
        """Return itself: batches are moved one by one."""
        return self

    def at(self, rows: Int[Tensor, " B"], drawn: Drawn | None = None) -> Features:
        """Read the features of these rows, ascending and one observation each; neighbours are read together.

        Of the frames as they are: what is drawn is picked from the rows of an epoch, which come with all views.
        """
        if drawn is not None:
            raise ValueError("streamed rows are read with all their views, by `epoch`")
        wanted = rows.cpu().numpy()
        span = np.searchsorted(self._first, wanted, side="right") - 1
        where = self._start[span] + wanted - self._first[span]
        cuts = np.flatnonzero((np.diff(where) != 1) | (np.diff(self._store[span]) != 0)) + 1
        edges = [0, *cuts.tolist(), len(wanted)]
        out = {c: torch.empty(len(wanted), 1, *shape, dtype=torch.float16) for c, shape in self._shapes().items()}
        for a, b in pairwise(edges):
            if a < b:
                store, start = self._stores[self._store[span[a]]], int(where[a])
                for camera, features in out.items():
                    read_views(store, self._names[camera], start, start + b - a, features[a:b])
        return {camera: features[:, 0] for camera, features in out.items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {camera: feature_shape(self._stores[0], name) for camera, name in self._names.items()}

    def epoch(
        self, counts: Int[Tensor, " N"], batch_size: int, seed: int, epoch: int
    ) -> Iterator[tuple[Int[Tensor, " B"], Features]]:
        """Yield the batches as the stores are streamed."""
        copies = counts.numpy()
        batches = stream(
            self._stores,
            list(self._names.values()),
            batch_size,
            self._memory_bytes,
            seed,
            epoch,
            self._episodes,
            lambda numbers: copies[self._rows(numbers)],
        )
        for batch in batches:
            features = {camera: torch.from_numpy(batch.values[name]) for camera, name in self._names.items()}
            if self.views == 1:
                features = {camera: x[:, 0] for camera, x in features.items()}
            yield torch.from_numpy(self._rows(batch.rows)), features

    def _rows(self, numbers: np.ndarray) -> np.ndarray:
        """Return the table's rows for row numbers of the stores."""
        span = np.searchsorted(self._number, numbers, side="right") - 1
        return self._first[span] + numbers - self._number[span]


def feature_shape(store: Store, name: str) -> tuple[int, ...]:
    """Return the shape of one frame's features in array `name`: (D,), or (P, W) of a grid."""
    return store.layout(name).row_shape[1:]  # without the axis of views


def read_views(store: Store, name: str, start: int, stop: int, out: Float[Tensor, "N V *shape"]) -> None:
    """Read the first V views, of rows start ... stop - 1, into `out`, shard by shard."""
    target = out.numpy()
    edges = [start, *range(start - start % store.shard_rows + store.shard_rows, stop, store.shard_rows), stop]
    for a, b in pairwise(edges):
        part = target[a - start : b - start]
        if store.layout(name).row_shape[0] == out.shape[1]:
            store.read(name, a, b, part)
        else:
            part[:] = store.read(name, a, b)[:, : out.shape[1]]
