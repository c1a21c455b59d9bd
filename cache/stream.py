"""Rows in random order, with bounded memory: for training on a store that is larger than that.

An epoch is cut into blocks (whole chunks of one shard). The blocks of all stores are put in random order, and so are
the rows of as many blocks as fit in memory, a window. While one window is used, a thread reads the next.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cache.errors import StoreError
from cache.reader import Piece, Store

log = logging.getLogger(__name__)
BLOCKS = 64
"""Blocks that a window should have: rows of so many places of the store meet in it. Of fewer than a quarter, warn."""
INDEX_BYTES = 40
"""Of a row in a window besides its values: number and place, each in order and shuffled, and the permutation."""

Copies = Callable[[np.ndarray], np.ndarray]
"""Numbers of rows (n,) int64 -> how often each is wanted in the epoch (n,) int64."""


@dataclass(frozen=True)
class Block:
    """Rows of one shard that are read together."""

    store: int
    rows: range

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class RowBatch:
    """Rows in random order.

    Attributes:
        rows: (B,) int64, their numbers, the stores' rows counted one store after the other: they tell where an action
            window begins.
        values: row array -> (B, *row shape), in the same order. Memory of its own, no view.
    """

    rows: np.ndarray
    values: dict[str, np.ndarray]


@dataclass
class _Window:
    """Memory for the rows of some blocks.

    Attributes:
        values: row array -> (W, *row shape), as they lie in the stores.
        rows: numbers of the rows that are wanted, shuffled.
        places: where they lie in `values`.
    """

    values: dict[str, np.ndarray]
    rows: np.ndarray
    places: np.ndarray

    def take(self, start: int, stop: int) -> RowBatch:
        """Return a copy of shuffled rows `start:stop`."""
        places = self.places[start:stop]
        return RowBatch(self.rows[start:stop].copy(), {name: x[places] for name, x in self.values.items()})


def stream(
    stores: Sequence[Store],
    names: Sequence[str],
    batch_rows: int,
    memory_bytes: int,
    seed: int,
    epoch: int = 0,
    episodes: Sequence[Sequence[int] | None] | None = None,
    copies: Copies | None = None,
) -> Iterator[RowBatch]:
    """Yield each row once, in random order, in batches of `batch_rows`; the last one may be smaller.

    The order is a pure function of the arguments and the stores' layout. A thread reads ahead. It ends with the
    iterator, also when that is closed, or forgotten, early.

    Args:
        stores: on a disk or on object storage, of the same row shapes and shard and chunk sizes.
        names: row arrays to read, such as ["image/agentview", "lowdim/joint_pos"].
        batch_rows: B.
        memory_bytes: bound on what is held: the window in use, the one that is being read, and two batches. The more
            memory, the better the shuffle; if all rows fit in half of it, each order is equally likely.
        seed: of the order.
        epoch: each has an order of its own.
        episodes: of each store, numbers of the episodes whose rows are wanted, such as those of a training split; None
            for all.
        copies: how often each row is wanted, to balance tasks, say; once if None. A copy takes no memory but its index.

    Raises:
        StoreError: the stores differ, or memory_bytes is too little, or, in reading, a shard is damaged or missing.
    """
    names = list(dict.fromkeys(names))
    _require_alike(stores, names)
    block_rows, blocks_per_window = _fit(stores, names, batch_rows, memory_bytes)
    wanted = _Wanted(stores, episodes or [None] * len(stores), copies)
    blocks = [block for block in _blocks(stores, block_rows) if wanted.any(block)]
    order = np.random.default_rng([seed, epoch]).permutation(len(blocks))
    count = -(-len(blocks) // blocks_per_window)
    windows = [[blocks[i] for i in part] for part in np.array_split(order, count)] if count else []
    seeds = [[seed, epoch, number] for number in range(1, count + 1)]
    return _batches(_Reader(stores, names, windows, wanted, seeds), batch_rows)


def _require_alike(stores: Sequence[Store], names: Sequence[str]) -> None:
    first = stores[0]
    for store in stores[1:]:
        for what, a, b in (
            ("shard_rows", first.shard_rows, store.shard_rows),
            ("chunk_rows", first.attrs["chunk_rows"], store.attrs["chunk_rows"]),
            *((name, _row(first, name), _row(store, name)) for name in names),
        ):
            if a != b:
                raise StoreError(
                    f"{first.location} and {store.location} differ in {what}: {a} and {b}. Embed both with the same "
                    "settings to stream from them together"
                )


def _row(store: Store, name: str) -> tuple[tuple[int, ...], str]:
    layout = store.layout(name)
    return layout.row_shape, str(layout.dtype)


def _fit(stores: Sequence[Store], names: Sequence[str], batch_rows: int, memory_bytes: int) -> tuple[int, int]:
    """Return rows per block and blocks per window such that all that is held at a time fits in the memory.

    Raises:
        StoreError: not even windows of one chunk fit.
    """
    store, rows = stores[0], sum(store.rows for store in stores)
    chunk_rows, row_bytes = int(store.attrs["chunk_rows"]), sum(store.layout(name).row_bytes for name in names)
    held = row_bytes + INDEX_BYTES
    free = memory_bytes - 2 * batch_rows * held
    chunks = max(1, min(free // (2 * held) // BLOCKS, store.shard_rows) // chunk_rows)
    block_rows = chunks * chunk_rows
    readers = max(store.files.readers for store in stores)
    free -= readers * block_rows * row_bytes  # what is on its way from object storage
    count = free // (2 * held * block_rows)
    if count < 1:
        least = 2 * batch_rows * held + (2 * held + readers * row_bytes) * chunk_rows
        raise StoreError(
            f"{store.location}: {memory_bytes} bytes are too little to stream {', '.join(names)} in batches of "
            f"{batch_rows}: it takes {least} at the very least, and {BLOCKS} times as much to shuffle well"
        )
    if count < BLOCKS // 4 and count * block_rows < rows:
        log.warning("%s: a window has only %d blocks: the rows are shuffled badly", store.location, count)
    return block_rows, count


def _blocks(stores: Sequence[Store], block_rows: int) -> Iterator[Block]:
    for number, store in enumerate(stores):
        for shard in range(0, store.rows, store.shard_rows):
            end = min(shard + store.shard_rows, store.rows)
            for start in range(shard, end, block_rows):
                yield Block(number, range(start, min(start + block_rows, end)))


class _Wanted:
    """Which rows of a block are wanted, and how often."""

    def __init__(
        self, stores: Sequence[Store], episodes: Sequence[Sequence[int] | None], copies: Copies | None
    ) -> None:
        self._start, self._stop = [], []
        self._before = np.cumsum([0, *(store.rows for store in stores)])
        self._copies = copies
        for store, numbers in zip(stores, episodes, strict=True):
            start, length = store.table("episode/start"), store.table("episode/length")
            chosen = slice(None) if numbers is None else np.unique(np.asarray(numbers, np.int64))
            self._start.append(start[chosen])
            self._stop.append(start[chosen] + length[chosen])

    def any(self, block: Block) -> bool:
        """Return whether any row is of an episode that is."""
        first, last = self._episodes(block)
        return first < last

    def rows(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the rows that are, ascending, and their places in the block."""
        first, last = self._episodes(block)
        begin, end, store = block.rows.start, block.rows.stop, block.store
        pairs = zip(self._start[store][first:last], self._stop[store][first:last], strict=True)
        rows = np.concatenate([np.arange(max(a, begin), min(b, end)) for a, b in pairs])
        numbers, places = rows + self._before[store], rows - begin
        if self._copies is None:
            return numbers, places
        copies = self._copies(numbers)
        return np.repeat(numbers, copies), np.repeat(places, copies)

    def _episodes(self, block: Block) -> tuple[int, int]:
        first = np.searchsorted(self._stop[block.store], block.rows.start, side="right")
        return int(first), int(np.searchsorted(self._start[block.store], block.rows.stop, side="left"))


class _Reader:
    """Iterates over windows; reads each in a thread while the one before is used."""

    def __init__(
        self,
        stores: Sequence[Store],
        names: Sequence[str],
        windows: Sequence[Sequence[Block]],
        wanted: _Wanted,
        seeds: Sequence[Sequence[int]],
    ) -> None:
        self._stores = stores
        self._names = names
        self._windows = windows
        self._wanted = wanted
        self._seeds = seeds
        self._free: queue.SimpleQueue[_Window] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Window | Exception | None] = queue.SimpleQueue()
        self._stop = threading.Event()

    def __iter__(self) -> Generator[_Window, None, None]:
        """Yield the windows. One that was yielded must not be used any more when the next is asked for."""
        thread = threading.Thread(target=self._run, name="stream", daemon=True)
        rows = max((sum(map(len, window)) for window in self._windows), default=0)
        for _ in range(min(2, len(self._windows))):
            self._free.put(self._memory(rows))
        thread.start()
        try:
            while (window := self._ready.get()) is not None:
                if isinstance(window, Exception):
                    raise window
                yield window
                self._free.put(window)
        finally:
            self._stop.set()
            self._free.put(self._memory(0))  # in case it waits for one
            thread.join()

    def _memory(self, rows: int) -> _Window:
        layouts = {name: self._stores[0].layout(name) for name in self._names}
        none = np.empty(0, np.int64)
        return _Window({n: np.empty((rows, *x.row_shape), x.dtype) for n, x in layouts.items()}, none, none)

    def _run(self) -> None:
        try:
            for blocks, seed in zip(self._windows, self._seeds, strict=True):
                window = self._free.get()
                if self._stop.is_set():
                    return
                self._fill(window, blocks, np.random.default_rng(seed))
                self._ready.put(window)
            self._ready.put(None)
        except Exception as error:  # the thread has nobody to tell
            self._ready.put(error)

    def _fill(self, window: _Window, blocks: Sequence[Block], rng: np.random.Generator) -> None:
        pieces: list[list[Piece]] = [[] for _ in self._stores]
        rows, places, begin = [], [], 0
        for block in blocks:
            end = begin + len(block)
            pieces[block.store] += [Piece(name, block.rows.start, x[begin:end]) for name, x in window.values.items()]
            numbers, within = self._wanted.rows(block)
            rows.append(numbers)
            places.append(within + begin)
            begin = end
        for store, wanted in zip(self._stores, pieces, strict=True):
            at_a_time = 4 * store.files.readers
            for first in range(0, len(wanted), at_a_time):
                if self._stop.is_set():
                    return
                store.fill(wanted[first : first + at_a_time])
        shuffled = rng.permutation(sum(map(len, rows)))
        window.rows, window.places = np.concatenate(rows)[shuffled], np.concatenate(places)[shuffled]


def _batches(reader: _Reader, batch_rows: int) -> Iterator[RowBatch]:
    """Cut windows into batches. What a window leaves over goes into the first batch of the next."""
    with contextlib.closing(iter(reader)) as windows:
        rest: RowBatch | None = None
        for window in windows:
            start = 0
            if rest is not None:
                start = batch_rows - len(rest.rows)
                rest = _join(rest, window.take(0, start))
                if len(rest.rows) < batch_rows:
                    continue
                yield rest
                rest = None
            whole = start + (len(window.rows) - start) // batch_rows * batch_rows
            for begin in range(start, whole, batch_rows):
                yield window.take(begin, begin + batch_rows)
            if whole < len(window.rows):
                rest = window.take(whole, len(window.rows))
        if rest is not None:
            yield rest


def _join(a: RowBatch, b: RowBatch) -> RowBatch:
    rows = np.concatenate([a.rows, b.rows])
    return RowBatch(rows, {name: np.concatenate([x, b.values[name]]) for name, x in a.values.items()})
