"""The embedding stage under kill -9: of itself, of workers, of the scheduler. It ends in the same bytes."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache.reader import open_store
from stages.embed import main
from tests.disk import small_disk
from tests.encode import tiny
from tests.stages import embedding
from tests.stages.embedding import IMAGES, content, demonstrations, store, took
from tests.stages.forker import Forker

pytestmark = pytest.mark.slow
KILLS = 10
VIEWS = 2


def arguments(base: Path, folder: Path, **options: object) -> list[str]:
    """Return argv of a build of all there is: views and grids too."""
    return embedding.arguments(base, folder, views=VIEWS, grid={"size": 2, "layer": -1}, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations, and a store built in this process: by the serial executor, without a fault."""
    folder = tmp_path_factory.mktemp("embed")
    demonstrations(folder)
    main(arguments(folder, folder))
    return folder


@pytest.fixture(scope="module")
def forker(base: Path) -> Iterator[Forker]:
    made = Forker(base / f"{tiny.MODEL}.json")
    yield made
    made.close()


class Cluster:
    """A Dask scheduler and workers, each a process of its own that can be killed."""

    def __init__(self, forker: Forker, folder: Path) -> None:
        self._forker, self._folder = forker, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"
        self.workers: list[int] = []
        self.start_scheduler()

    def start_scheduler(self) -> None:
        argv = ["--host", "127.0.0.1", "--port", str(self._port), "--no-dashboard", "--no-show", "--no-jupyter"]
        self.scheduler = self._forker.start("scheduler", argv, self._folder / "scheduler.log")

    def start_worker(self, threads: int = 1) -> None:
        place = ["--no-nanny", "--no-dashboard", "--local-directory", str(self._folder)]
        argv = [self.address, "--nthreads", str(threads), *place]
        log = self._folder / f"worker{len(self.workers)}.log"
        self.workers.append(self._forker.start("worker", argv, log))
        until(lambda: "Registered to" in log.read_text() if log.exists() else False)

    def close(self) -> None:
        for pid in (*self.workers, self.scheduler):
            kill(pid)


@pytest.fixture
def cluster(forker: Forker, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(forker, tmp_path)
    yield made
    made.close()


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], bool], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def receipts(folder: Path) -> int:
    """Return how many units are finished."""
    return sum(path.read_bytes().count(b"\n") - 1 for path in folder.glob("scratch/*/*/ledger.jsonl"))


def finish(forker: Forker, argv: list[str], folder: Path) -> None:
    log = folder / "stage.log"
    assert forker.wait(forker.start("stage", argv, log)) == 0, log.read_text()


def kill_at_random(forker: Forker, argv: list[str], folder: Path, base: Path, kills: int, seed: int) -> None:
    """Kill the stage `kills` times, at any time of its run; whatever store is there then is whole."""
    rng = random.Random(seed)
    started = time.monotonic()
    finish(forker, argv, folder)
    usual_s = time.monotonic() - started
    assert content(folder) == content(base)
    shutil.rmtree(folder / "out")
    shutil.rmtree(folder / "scratch")
    for _ in range(kills):
        pid = forker.start("stage", argv, folder / "stage.log")
        time.sleep(rng.uniform(0, usual_s))
        kill(pid)
        forker.wait(pid)
        if store(folder).exists():
            assert content(folder) == content(base)
            shutil.rmtree(folder / "out")
            shutil.rmtree(folder / "scratch", ignore_errors=True)
    finish(forker, argv, folder)
    assert content(folder) == content(base)


def test_kills_of_a_serial_build(base: Path, tmp_path: Path, forker: Forker) -> None:
    kill_at_random(forker, arguments(base, tmp_path), tmp_path, base, KILLS, seed=0)


def test_a_kill_of_a_build_with_local_workers(base: Path, tmp_path: Path, forker: Forker) -> None:
    argv = arguments(base, tmp_path, scheduler="local", workers=2)
    pid = forker.start("stage", argv, tmp_path / "stage.log")
    until(lambda: receipts(tmp_path) > 0)
    kill(pid)
    assert forker.wait(pid) == -signal.SIGKILL
    before = receipts(tmp_path)
    assert not store(tmp_path).exists()
    finish(forker, argv, tmp_path)
    assert content(tmp_path) == content(base)
    assert took(tmp_path)["images_resumed"] >= VIEWS * 64 * before
    assert took(tmp_path)["images"] + took(tmp_path)["images_resumed"] == VIEWS * IMAGES


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_kills_of_a_build_with_local_workers(base: Path, tmp_path: Path, forker: Forker) -> None:
    argv = arguments(base, tmp_path, scheduler="local", workers=2)
    kill_at_random(forker, argv, tmp_path, base, KILLS, seed=2)


def test_kills_of_a_build_on_a_cluster(base: Path, tmp_path: Path, forker: Forker, cluster: Cluster) -> None:
    """The workers live on, and may still write a unit while the next run has it made once more."""
    argv = arguments(base, tmp_path, scheduler=cluster.address)
    cluster.start_worker()
    finish(forker, argv, tmp_path)  # one worker
    assert content(tmp_path) == content(base)
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "scratch")
    cluster.start_worker(threads=2)
    kill_at_random(forker, argv, tmp_path, base, KILLS, seed=1)


def test_a_worker_killed_in_the_middle_of_a_unit(base: Path, tmp_path: Path, forker: Forker, cluster: Cluster) -> None:
    for _ in range(2):
        cluster.start_worker()
    pid = forker.start("stage", arguments(base, tmp_path, scheduler=cluster.address), tmp_path / "stage.log")
    until(lambda: receipts(tmp_path) >= 1)
    kill(cluster.workers[0])
    assert forker.wait(pid) == 0, (tmp_path / "stage.log").read_text()
    assert content(tmp_path) == content(base)


def test_a_full_disk_is_one_clear_message(base: Path, tmp_path: Path, forker: Forker) -> None:
    """The workers meet it, and none of them has anything to say."""
    least = open_store(store(base)).plan.bytes  # for less, the stage would not begin
    with small_disk(tmp_path / "disk", least // 1024 + 40) as disk:
        argv = arguments(base, disk / "build", scheduler="local", workers=2, shard_rows=64)
        assert forker.wait(forker.start("stage", argv, tmp_path / "stage.log")) == 1
    text = (tmp_path / "stage.log").read_text()
    assert re.search(r"\nerror: .*/c/\d.*: cannot be written: No space left on device\. Make room and start", text), (
        text
    )
    assert "Traceback" not in text and "Compute Failed" not in text


def test_the_scheduler_killed(base: Path, tmp_path: Path, forker: Forker, cluster: Cluster) -> None:
    argv = arguments(base, tmp_path, scheduler=cluster.address)
    cluster.start_worker()
    pid = forker.start("stage", argv, tmp_path / "stage.log")
    until(lambda: receipts(tmp_path) >= 1)
    kill(cluster.scheduler)
    assert forker.wait(pid) == 1
    last = (tmp_path / "stage.log").read_text().strip().splitlines()[-1]
    assert last.startswith(f"error: compute.scheduler: the scheduler at {cluster.address} is gone"), last
    assert "start the same command again" in last
    assert receipts(tmp_path) >= 1 and not store(tmp_path).exists()
    kill(cluster.workers[0])
    cluster.start_scheduler()
    cluster.start_worker()
    finish(forker, argv, tmp_path)
    assert content(tmp_path) == content(base)
    assert took(tmp_path)["images_resumed"] >= VIEWS * 64
