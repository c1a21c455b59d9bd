"""Run a function over many items, on this process, on local Dask workers or on a Dask cluster, with the same results.

A worker is one process with one thread. What is costly to make (a CLIP model, a simulator) is made once per worker by
`setup`, in the thread that will use it (GL contexts belong to a thread), and handed to every call:

    for item, result in map_unordered(record, tasks, params.compute, setup=partial(Recorder, params.sim)):
        ...

`fn` may `report_progress`. `fn`, `setup` and the items travel by pickle. Which worker gets which item, and when, is
not determined: a result must depend on its item alone.
"""

import contextlib
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import PipelineError
from pipeline.memory import WORKER_ENVIRONMENT, keep_freed_memory
from pipeline.ranges import Count

Item = TypeVar("Item")
Result = TypeVar("Result")
log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 20.0
START_TIMEOUT_S = 120  # of local workers: a busy machine takes long to import torch
# A worker may die of something that is not the item's doing; one that dies at the same item three times is.
ALLOWED_DEATHS = 2


@dataclass(frozen=True)
class Tls:
    """Files (PEM) that a Dask cluster is entered with; its scheduler and workers have their own of the same CA."""

    ca: str  # certificate of the authority that signed the others
    cert: str  # of this client
    key: str  # to the certificate


@dataclass(frozen=True)
class Compute:
    """Where demos, embed and eval_libero run. Results do not depend on it, but for rollouts on threads_per_worker."""

    scheduler: str  # "serial", "local" (Dask workers on this machine), tcp://host:port or tls://host:port
    workers: Count | None  # local: processes; null is the number of cores; embedding on GPUs takes one per GPU at most
    threads_per_worker: Count | None  # torch threads; null shares the cores among the workers (rollouts: one each)
    tls: Tls | None = None  # for tls://


def map_unordered(
    fn: Callable[[Any, Item], Result],
    items: Iterable[Item],
    compute: Compute,
    setup: Callable[[], Any] | None = None,
    lost: Callable[[Item], Result] | None = None,
    concurrency: int = 1,
    on_progress: Callable[[Any], None] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, fn(state, item)) as they end.

    Args:
        fn: called as fn(state, item) with `state = setup()` of the worker it runs on.
        items: all are taken at once; no more are submitted than there are workers.
        compute: where to run.
        setup: makes the worker's state; None stands for a state of None. A `close()` of the state is called at the end.
        lost: gives the result of an item that killed its worker process three times. Without it that is an error.
            (A serial run has no other process: there the item kills the run.)
        concurrency: items in progress at once in a worker, each in a thread of its own; `fn` must allow for that. A
            remote worker that was started with fewer threads takes fewer.
        on_progress: callback for what `fn` reports. May run in any thread, unordered with respect to results.

    Raises:
        PipelineError: no scheduler at the address, unsuitable workers, or a lost item.
        Exception: whatever fn or setup raised, with its own type. Work under way elsewhere is given up.
    """
    todo = list(items)
    if not todo:
        return
    if compute.scheduler == "serial":
        yield from _serial(fn, todo, compute, setup, concurrency, on_progress)
    else:
        yield from _distributed(fn, todo, compute, setup, lost, concurrency, on_progress)


@contextlib.contextmanager
def kept_workers() -> Iterator[None]:
    """Let the calls of `map_unordered` in the block share local workers, which take seconds to start and to end.

    The first call that needs them starts them; one that needs more, or other ones, starts all anew. A worker's state is
    made by each call as ever.
    """
    global _kept
    with contextlib.ExitStack() as open_until_the_end:
        _kept = _Kept(open_until_the_end)
        try:
            yield
        finally:
            _kept = None


_progress: Callable[[Any], None] | None = None  # of this process, while it works on items


def report_progress(message: Any) -> None:
    """Called by `fn`, in any thread: hand a small message of plain values to the caller's `on_progress`."""
    if _progress is not None:
        _progress(message)


def worker_index() -> int:
    """Return the number of the local worker this runs in, from 0: to spread workers over GPUs. 0 when serial."""
    from distributed import get_worker

    try:
        name = str(get_worker().name)
    except ValueError:
        return 0
    return int(name) if name.isdigit() else 0


def cores() -> int:
    """Return how many cores this process may use: affinity and container limits count."""
    from dask.system import CPU_COUNT

    return max(1, min(CPU_COUNT, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else CPU_COUNT))


def worker_count(compute: Compute, items: int) -> int:
    """Return how many local workers `items` items get."""
    return 1 if compute.scheduler == "serial" else max(1, min(compute.workers or cores(), items))


def threads(compute: Compute, items: int) -> int:
    """Return the number of torch threads of each worker."""
    if compute.threads_per_worker is not None:
        return compute.threads_per_worker
    if compute.scheduler in ("serial", "local"):
        return max(1, cores() // worker_count(compute, items))
    return 1  # a cluster's workers are started one per core, or with a GPU


def _serial(
    fn: Callable,
    items: list,
    compute: Compute,
    setup: Callable[[], Any] | None,
    concurrency: int,
    on_progress: Callable[[Any], None] | None,
) -> Iterator:
    global _progress
    keep_freed_memory()
    _set_threads(threads(compute, len(items)))
    state = setup() if setup else None
    _progress = on_progress
    try:
        if concurrency == 1:
            for item in items:
                yield item, fn(state, item)
        else:
            yield from _concurrently(partial(fn, state), items, concurrency)
    finally:
        _progress = None
        _close(state)


def _concurrently(fn: Callable, items: list, concurrency: int) -> Iterator:
    waiting = iter(items)
    running: dict[Future, Any] = {}
    pool = ThreadPoolExecutor(concurrency)
    try:
        while True:
            for item in islice(waiting, concurrency - len(running)):
                running[pool.submit(fn, item)] = item
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: future.exception() is not None):  # no result is lost
                yield running.pop(future), future.result()
    finally:  # without waiting: closing the state makes what is under way give up
        pool.shutdown(wait=False, cancel_futures=True)


def _distributed(
    fn: Callable,
    items: list,
    compute: Compute,
    setup: Callable[[], Any] | None,
    lost: Callable | None,
    concurrency: int,
    on_progress: Callable[[Any], None] | None,
) -> Iterator:
    import dask
    from distributed import as_completed

    token = uuid.uuid4().hex  # of this call: a cluster's workers outlive it, and so would the state of an earlier one
    torch_threads = threads(compute, len(items))
    waiting = iter(items)
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.comm.timeouts.connect": f"{START_TIMEOUT_S}s",
        **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in WORKER_ENVIRONMENT.items()},
    }
    with dask.config.set(settings), _client(compute, items, concurrency) as client, _connected(compute.scheduler):
        if on_progress is not None:
            client.subscribe_topic(token, lambda event: on_progress(event[1]))
        running: dict[str, tuple[Any, Any]] = {}
        done = as_completed(loop=client.loop)

        def submit() -> None:
            free = max(1, sum(client.nthreads().values())) - len(running)  # asked anew: workers come and go
            for item in islice(waiting, free):
                future = client.submit(_call, fn, setup, token, torch_threads, item, pure=False)
                running[future.key] = (future, item)
                done.add(future)

        submit()
        for future in done:
            _, item = running.pop(future.key)
            result = _result(future, item, lost)
            del future
            submit()
            yield item, result
        _close_all(client, token)


def _result(future: Any, item: Any, lost: Callable | None) -> Any:
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        if lost is None:
            raise PipelineError(
                f"item {item!r:.200} killed its worker process {ALLOWED_DEATHS + 1} times (out of memory, or a crash "
                "in native code). Try compute.workers: 1, or compute.scheduler: serial to see the crash."
            ) from error
        return lost(item)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Turn a lost connection to the scheduler into an error that says what to do."""
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError

    try:
        yield
    except (FutureCancelledError, CommClosedError) as error:
        raise PipelineError(
            f"compute.scheduler: the scheduler at {address} is gone ({str(error).splitlines()[0]}). See to it that it "
            "and its workers run, then start the same command again"
        ) from error


@contextlib.contextmanager
def _client(compute: Compute, items: list, concurrency: int) -> Iterator[Any]:
    """Yield a client of local workers, fresh or kept, or of the cluster at the address."""
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.ERROR)  # importing it set its own
    if compute.scheduler == "local":
        wanted = worker_count(compute, len(items)), concurrency
        if _kept is not None:
            yield _kept.client(*wanted)
        else:
            with _local(*wanted) as client:
                yield client
        return
    try:
        client = Client(compute.scheduler, timeout=CONNECT_TIMEOUT_S, security=_security(compute.tls))
    except (OSError, TimeoutError, ValueError) as error:
        raise PipelineError(
            f"compute.scheduler: no Dask scheduler answers at {compute.scheduler} ({error}). "
            "Start one with: dask scheduler; or use compute.scheduler: local"
        ) from error
    with client:
        _check_workers(client, compute.scheduler, concurrency)
        yield client


@contextlib.contextmanager
def _local(workers: int, concurrency: int) -> Iterator[Any]:
    """Yield a client of workers on this machine, which end with the block."""
    from distributed import Client, LocalCluster

    with (
        contextlib.ExitStack() as until_closed,
        LocalCluster(
            n_workers=workers,
            threads_per_worker=concurrency,
            processes=True,
            host="127.0.0.1",
            # No dashboard, and no fixed port that two runs would fight over.
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            memory_limit=0,  # work is bounded by design; pausing and killing at a guessed limit only harms
            silence_logs=logging.CRITICAL,  # a worker would log what `fn` raised, which reaches the caller anyway
        ) as cluster,
        Client(cluster) as client,
    ):
        try:
            yield client
        except BaseException:  # the error is told by whoever catches it; of the cluster's end it is no news
            until_closed.enter_context(_silenced("distributed"))
            raise


class _Kept:
    """Local workers of several calls."""

    def __init__(self, open_until_the_end: contextlib.ExitStack) -> None:
        self._open = open_until_the_end
        self._client: Any = None
        self._made_for = (0, 0)

    def client(self, workers: int, concurrency: int) -> Any:
        """Return a client of at least so many workers, of exactly so many threads."""
        if workers > self._made_for[0] or concurrency != self._made_for[1]:
            self._made_for = (0, 0)
            self._open.close()
            self._client = self._open.enter_context(_local(workers, concurrency))
            self._made_for = workers, concurrency
        return self._client


_kept: _Kept | None = None  # in a block of `kept_workers`


@contextlib.contextmanager
def _silenced(library: str) -> Iterator[None]:
    """Log nothing of a library: parts of it may have levels of their own."""
    names = [name for name in logging.root.manager.loggerDict if f"{name}.".startswith(f"{library}.")]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _security(tls: Tls | None) -> Any:
    if tls is None:
        return None
    from distributed import Security

    for name, file in asdict(tls).items():
        if not Path(file).is_file():
            raise PipelineError(f"compute.tls.{name}: no file {file}. Give the PEM file that the cluster was made with")
    return Security(require_encryption=True, tls_ca_file=tls.ca, tls_client_cert=tls.cert, tls_client_key=tls.key)


def _check_workers(client: Any, address: str, concurrency: int) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S)
    except TimeoutError:
        raise PipelineError(
            f"compute.scheduler: {address} has no workers. Start some: dask worker {address} --nthreads 1"
        ) from None
    if wrong := [worker for worker, n in client.nthreads().items() if n > concurrency]:
        raise PipelineError(
            f"compute.scheduler: the worker {wrong[0]} has {client.nthreads()[wrong[0]]} threads; here there may be "
            f"{concurrency} per process. Start it with: dask worker {address} --nthreads 1 --nworkers N"
        )


_states: dict[str, Any] = {}  # in a worker process: token of the call -> state; at most one
_states_lock = threading.Lock()


def _call(fn: Callable, setup: Callable[[], Any] | None, token: str, torch_threads: int, item: Any) -> Any:
    global _progress
    from distributed import get_worker

    with _states_lock:
        if token not in _states:
            for old in list(_states):
                _close(_states.pop(old))
            _set_threads(torch_threads)
            _progress = partial(get_worker().log_event, token)
            _states[token] = setup() if setup else None
    return fn(_states[token], item)


def _close_all(client: Any, token: str) -> None:
    """Close the workers' states by a task on each: in the thread that made them, unlike `client.run`."""
    workers = list(client.nthreads())
    futures = [client.submit(_forget, token, workers=[w], pure=False, allow_other_workers=False) for w in workers]
    for worker, future in zip(workers, futures, strict=True):
        try:
            future.result(timeout=CLOSE_TIMEOUT_S)
        except Exception as error:  # every result is in already: a failure to tidy up must not spoil them
            log.warning("worker %s did not close: %r", worker, error)


def _forget(token: str) -> None:
    _close(_states.pop(token, None))


def _close(state: Any) -> None:
    if hasattr(state, "close"):
        state.close()


def _set_threads(n: int) -> None:
    """Set torch's threads by hand, since Dask starts workers with OMP_NUM_THREADS=1. Torch is not imported for it."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(n)  # torch reads these when it is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)
