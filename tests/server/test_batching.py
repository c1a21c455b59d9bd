"""Requests that wait together are computed together; one at fault does not take the others along."""

import threading
import time
from concurrent.futures import Future, wait

import pytest

from pipeline.server.batching import DEAD, HANGS, Batcher, Batching, Busy


class Gated:
    """Computes when the gate is open; keeps what came together."""

    def __init__(self, **limits: float) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        settings = Batching(**{"largest": 4, "wait_s": 0.0, "queue": 100, **limits})  # type: ignore[arg-type]
        self.clients = 1
        self.lacking = 0
        self.batcher: Batcher[int, int] = Batcher(
            self.compute, lambda item: item >= 100, settings, lambda: self.clients
        )

    def compute(self, items: list[int]) -> list[int]:
        self.entered.set()
        assert self.gate.wait(30)
        self.batches.append(items)
        if 13 in items:
            raise ValueError("13")
        if 17 in items:
            raise SystemExit  # not even an Exception
        return [10 * item for item in items[self.lacking :]]

    def queued(self, *items: int) -> list[Future]:
        """Submit items behind one that occupies the thread; open the gate; wait for all."""
        first = self.batcher.submit(0)
        assert self.entered.wait(30)
        futures = [self.batcher.submit(item) for item in items]
        self.gate.set()
        wait([first, *futures], timeout=30)
        self.batcher.close()
        return futures


def test_what_waits_is_computed_at_once_in_order_up_to_the_largest_batch() -> None:
    gated = Gated()
    futures = gated.queued(*range(1, 7))
    assert [future.result().result for future in futures] == [10, 20, 30, 40, 50, 60]
    assert gated.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert futures[0].result().batch == 4 and gated.batcher.batches == 3


def test_only_alike_requests_come_together() -> None:
    gated = Gated()
    futures = gated.queued(1, 100, 2, 200)
    assert [future.result().result for future in futures] == [10, 1000, 20, 2000]
    assert gated.batches == [[0], [1, 2], [100, 200]]


def test_the_one_at_fault_gets_the_error() -> None:
    gated = Gated()
    futures = gated.queued(1, 13, 2)
    assert isinstance(futures[1].exception(), ValueError)
    assert [futures[i].result().result for i in (0, 2)] == [10, 20]


def test_the_others_of_its_batch_still_come_together() -> None:
    gated = Gated()
    futures = gated.queued(13, 1, 2, 3)
    assert isinstance(futures[0].exception(), ValueError)
    assert [future.result().result for future in futures[1:]] == [10, 20, 30]
    assert gated.batches == [[0], [13, 1, 2, 3], [13, 1], [13], [1], [2, 3]]


def test_a_full_queue_refuses() -> None:
    gated = Gated(queue=2)
    gated.batcher.submit(0)
    assert gated.entered.wait(30)
    for item in (1, 2):
        gated.batcher.submit(item)
    with pytest.raises(Busy, match="2 requests are waiting"):
        gated.batcher.submit(3)
    gated.gate.set()
    gated.batcher.close()
    with pytest.raises(Busy, match="stopping"):
        gated.batcher.submit(4)
    assert gated.batches[0] == [0] and sorted(i for batch in gated.batches for i in batch) == [0, 1, 2], (
        "what was accepted is computed"
    )


def test_a_batch_is_held_back_for_those_who_may_ask() -> None:
    gated = Gated(wait_s=30.0)
    gated.clients = 3
    gated.gate.set()
    futures = [gated.batcher.submit(item) for item in (1, 2, 3)]
    assert [future.result(timeout=20).result for future in futures] == [10, 20, 30]
    assert gated.batches == [[1, 2, 3]]
    gated.batcher.close()


def test_what_was_cancelled_is_not_computed() -> None:
    gated = Gated()
    gated.batcher.submit(0)
    assert gated.entered.wait(30)
    gated.batcher.submit(1).cancel()
    gated.gate.set()
    gated.batcher.close()
    assert gated.batches == [[0]]


def test_too_few_results_are_an_error_of_each_request_and_the_thread_goes_on() -> None:
    gated = Gated()
    gated.lacking = 1
    futures = gated.queued(1, 2)
    assert [str(future.exception()) for future in futures] == ["0 results for 1 requests"] * 2
    assert gated.batches == [[0], [1, 2], [1], [2]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_takes_nobody_along_in_silence() -> None:
    gated = Gated(largest=1)
    assert gated.batcher.trouble is None
    futures = gated.queued(17, 1)
    for future in futures:
        with pytest.raises(Busy, match=r"the inference thread has ended\. Restart the server"):
            future.result(timeout=30)
    assert gated.batcher.trouble == DEAD


def test_a_batch_that_hangs_is_told_until_it_ends() -> None:
    gated = Gated(hangs_s=0.05)
    hanging = gated.batcher.submit(1)
    assert gated.entered.wait(30)
    deadline = time.monotonic() + 30
    while gated.batcher.trouble is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gated.batcher.trouble == HANGS
    with pytest.raises(Busy, match="hangs"):
        gated.batcher.submit(2)
    gated.gate.set()
    assert hanging.result(timeout=30).result == 10
    while gated.batcher.trouble and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gated.batcher.submit(3).result(timeout=30).result == 30
    assert gated.batcher.close()


def test_what_is_abandoned_is_told_and_its_result_dropped() -> None:
    gated = Gated()
    under_way = gated.batcher.submit(1)
    assert gated.entered.wait(30)
    waiting = gated.batcher.submit(2)
    assert not gated.batcher.close(timeout_s=0.01), "the device hangs"
    gated.batcher.abandon("the server is stopping")
    for future in (under_way, waiting):
        with pytest.raises(Busy, match="the server is stopping"):
            future.result(timeout=30)
    gated.gate.set()
    assert gated.batcher.close() and gated.batches == [[1]]


@pytest.mark.parametrize("wrong", [{"largest": 0}, {"queue": 0}, {"wait_s": -1.0}, {"wait_s": float("nan")}])
def test_limits_that_make_no_batch_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sizes are at least 1"):
        Gated(**wrong)
