"""Many clients, one device: what waits at the same time is computed at once, in one thread.

A batch begins as soon as the thread is free. It is held back, for a moment, only while fewer requests wait than clients
are connected: a single client never waits for anybody.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
DEAD = "the inference thread has ended. Restart the server"
HANGS = "the inference thread hangs. If it stays so, restart the server"


class Busy(RuntimeError):
    """The request is not computed: the queue is full or closed, or the inference thread has ended or hangs."""


@dataclass(frozen=True)
class Batching:
    """Limits of a batch.

    Attributes:
        largest: requests in it.
        wait_s: seconds that it is held back for clients who have not asked yet.
        queue: requests that may wait; more are refused.
        hangs_s: seconds after which a batch is taken to hang. The first one may compile and capture.

    Raises:
        ValueError: no batch could be made of these.
    """

    largest: int = 32
    wait_s: float = 0.002
    queue: int = 256
    hangs_s: float = 120.0

    def __post_init__(self) -> None:
        if self.largest < 1 or self.queue < 1 or not 0 <= self.wait_s < math.inf:
            raise ValueError(f"{self}: sizes are at least 1, and the wait is finite and not negative")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The result of a request, the seconds that its batch took, and how many requests were in it."""

    result: Result
    seconds: float
    batch: int


class Batcher(Generic[Item, Result]):
    """Computes submitted items in batches, in a thread of its own.

    Args:
        compute: gives the results of some items, in their order. If it raises, or gives another number of results,
            halves of them are tried, and so on, so that only the one at fault gets the error.
        alike: items that give the same value can be in one batch.
        expected: how many items may be waiting at most, if all who may ask do.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], list[Result]],
        alike: Callable[[Item], Hashable],
        limits: Batching,
        expected: Callable[[], int],
    ) -> None:
        self.batches = 0
        self._compute = compute
        self._alike = alike
        self._limits = limits
        self._expected = expected
        self._waiting: deque[tuple[Item, Future]] = deque()
        self._running: list[tuple[Item, Future]] = []
        self._changed = threading.Condition()
        self._since: float | None = None  # the batch under way began
        self._closed = self._dead = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Done[Result]]":
        """Return the future of an item. Raises Busy."""
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping")
            if trouble := self.trouble:
                raise Busy(trouble)
            if len(self._waiting) >= self._limits.queue:
                raise Busy(f"{len(self._waiting)} requests are waiting; try again later")
            future: Future = Future()
            self._waiting.append((item, future))
            self._changed.notify()
        return future

    @property
    def waiting(self) -> int:
        """How many items no batch has taken yet."""
        return len(self._waiting)

    @property
    def trouble(self) -> str | None:
        """What is wrong with the thread: it ends by an error that is no Exception, and hangs if the device does."""
        if self._dead:
            return DEAD
        since = self._since
        return HANGS if since is not None and perf_counter() - since > self._limits.hangs_s else None

    def close(self, timeout_s: float | None = None) -> bool:
        """Compute what was submitted, and end the thread; return whether it has ended.

        Args:
            timeout_s: to wait for that; None: for ever.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def abandon(self, why: str) -> None:
        """Raise Busy in all who wait for a result, of the batch under way, too. What that gives is dropped."""
        with self._changed:
            pairs = [*self._running, *self._waiting]
            self._waiting.clear()
        for _, future in pairs:
            with suppress(InvalidStateError):  # it has its result
                future.set_exception(Busy(why))

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._since = perf_counter()
                self._finish(batch)
                self._since = None
        finally:
            with self._changed:
                self._dead = True
            self.abandon(DEAD)  # nobody, if it was closed

    def _next(self) -> list[tuple[Item, Future]] | None:
        """Wait for a batch, and return what of it was not cancelled; None is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            deadline = perf_counter() + self._limits.wait_s
            while not self._closed and len(self._waiting) < min(self._limits.largest, self._expected()):
                if (left := deadline - perf_counter()) <= 0:
                    break
                self._changed.wait(left)
            if not self._waiting:
                return None
            first = self._alike(self._waiting[0][0])
            batch: list[tuple[Item, Future]] = []
            others: deque[tuple[Item, Future]] = deque()
            for pair in self._waiting:
                fits = len(batch) < self._limits.largest and self._alike(pair[0]) == first
                (batch if fits else others).append(pair)
            self._waiting = others
            self._running = [pair for pair in batch if pair[1].set_running_or_notify_cancel()]
            return self._running

    def _finish(self, batch: list[tuple[Item, Future]]) -> None:
        if not batch:  # all were cancelled
            return
        started = perf_counter()
        try:
            results = self._compute([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} requests")
        except Exception as error:
            if len(batch) == 1:
                with suppress(InvalidStateError):  # abandoned
                    batch[0][1].set_exception(error)
                return
            half = len(batch) // 2
            self._finish(batch[:half])
            self._finish(batch[half:])
            return
        seconds = perf_counter() - started
        self.batches += 1
        for (_, future), result in zip(batch, results, strict=True):
            with suppress(InvalidStateError):
                future.set_result(Done(result, seconds, len(batch)))
