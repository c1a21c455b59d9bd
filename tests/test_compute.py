"""pipeline.compute: one contract on every executor."""

import os
import platform
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from pipeline.compute import Compute, Tls, cores, kept_workers, map_unordered, report_progress, threads, worker_count
from pipeline.config import from_dict
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.memory import SETTINGS
from tests.certificates import authority

SERIAL = Compute("serial", None, None)
ONE = Compute("local", 1, 1)
TWO = Compute("local", 2, 1)


@dataclass
class Counter:
    """A state that says where it was made and how often it was used."""

    folder: Path
    calls: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        with (self.folder / "made").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def close(self) -> None:
        with (self.folder / "closed").open("a") as file:
            file.write(f"{os.getpid()}\n")


@dataclass(frozen=True)
class Make:
    folder: Path

    def __call__(self) -> Counter:
        return Counter(self.folder)


def square(state: Counter, item: int) -> tuple[int, int]:
    state.calls.append(item)
    time.sleep(0.05)
    return item * item, os.getpid()


def torch_threads(state: None, item: int) -> int:
    import torch

    return torch.get_num_threads()


def fail(state: None, item: int) -> int:
    if item == 2:
        raise DataError(f"item {item} is bad; mend it")
    return item


def die(state: None, item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refuse() -> None:
    raise PipelineError("no model; fetch it")


@pytest.mark.parametrize("compute", [SERIAL, TWO], ids=["serial", "two"])
def test_results_and_one_state_per_worker(compute: Compute, tmp_path: Path) -> None:
    found = dict(map_unordered(square, range(8), compute, Make(tmp_path)))
    assert {item: value for item, (value, _) in found.items()} == {i: i * i for i in range(8)}
    workers = {pid for _, pid in found.values()}
    assert len(workers) == (2 if compute is TWO else 1)
    assert (os.getpid() in workers) == (compute is SERIAL)
    made = [int(line) for line in (tmp_path / "made").read_text().split()]
    closed = [int(line) for line in (tmp_path / "closed").read_text().split()]
    assert sorted(made) == sorted(closed) == sorted(workers)


@pytest.mark.parametrize("compute", [SERIAL, ONE], ids=["serial", "one"])
def test_errors_keep_their_type_and_text(compute: Compute) -> None:
    with pytest.raises(DataError, match="item 2 is bad; mend it"):
        list(map_unordered(fail, range(4), compute))
    with pytest.raises(PipelineError, match="no model; fetch it"):
        list(map_unordered(fail, range(4), compute, refuse))


def meet(state: Path, item: int) -> int:
    """Wait until the item's neighbour is under way too."""
    (state / str(item)).touch()
    report_progress(item)
    deadline = time.monotonic() + 20
    while not (state / str(item ^ 1)).exists():
        assert time.monotonic() < deadline, "the other item has not been begun"
        time.sleep(0.01)
    return os.getpid()


@pytest.mark.parametrize("compute", [SERIAL, ONE], ids=["serial", "one"])
def test_concurrency_and_progress(compute: Compute, tmp_path: Path) -> None:
    reported: list[int] = []
    setup = partial(Path, tmp_path)
    found = {}
    for item, pid in map_unordered(meet, range(4), compute, setup, concurrency=2, on_progress=reported.append):
        found[item] = pid
        while item not in reported:  # soon, though not necessarily before the result
            time.sleep(0.01)
    assert len(set(found.values())) == 1  # one process
    assert sorted(found) == sorted(reported) == [0, 1, 2, 3]
    report_progress("nobody listens any more")


def test_a_failure_in_one_lane_loses_no_result_of_another() -> None:
    found = []
    with pytest.raises(DataError, match="item 2 is bad"):
        for item, _ in map_unordered(fail, [0, 1, 3, 2], SERIAL, concurrency=2):
            found.append(item)
    assert sorted(found) == [0, 1, 3]


def test_an_item_that_kills_its_worker_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.compute.ALLOWED_DEATHS", 1)
    assert dict(map_unordered(die, range(4), ONE, lost=lambda item: -item)) == {0: 0, 1: -1, 2: 2, 3: 3}


def test_an_item_that_kills_its_worker_is_an_error_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.compute.ALLOWED_DEATHS", 0)
    with pytest.raises(PipelineError, match="item 1 killed its worker"):
        list(map_unordered(die, [1], ONE))


def test_torch_threads_are_set() -> None:
    if cores() < 2:
        pytest.skip("torch takes no more threads than there are cores")
    assert list(map_unordered(torch_threads, [0], Compute("local", 1, 2))) == [(0, 2)]  # Dask by itself sets 1


def faults(state: None, item: int) -> int:
    """Return the pages faulted in by 24 blocks of 8 MiB that were had and freed before, in this very thread."""

    def churn() -> None:
        blocks = [bytearray(b"x") * (8 * 2**20) for _ in range(24)]
        del blocks

    churn()
    churn()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    churn()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
@pytest.mark.parametrize("compute", [SERIAL, ONE])
def test_workers_keep_the_memory_that_they_free(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:  # Dask's nanny leaves its own in this process
        monkeypatch.delenv(name, raising=False)
    ((_, found),) = map_unordered(faults, [0], compute)
    assert found < 2000, "of 49,152 pages of 4 KiB"


def test_no_items_start_nothing() -> None:
    assert list(map_unordered(square, [], Compute("tcp://127.0.0.1:1", None, None), refuse)) == []


def test_no_scheduler_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.compute.CONNECT_TIMEOUT_S", 1.0)
    with pytest.raises(PipelineError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 "):
        list(map_unordered(fail, [0], Compute("tcp://127.0.0.1:1", None, None)))


@pytest.fixture
def cluster():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as made:
        yield made


def test_remote_scheduler_serves_two_calls(cluster, tmp_path: Path) -> None:
    compute = Compute(cluster.scheduler_address, None, 1)
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        found = dict(map_unordered(square, range(6), compute, Make(tmp_path / run)))
        assert {item: value for item, (value, _) in found.items()} == {i: i * i for i in range(6)}
        assert len((tmp_path / run / "made").read_text().split()) == 2  # a state is made anew for each call


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster, Security

    ours, theirs = authority(tmp_path / "ours"), authority(tmp_path / "theirs")
    roles = {f"tls_{role}_{part}": getattr(ours, part) for role in ("scheduler", "worker") for part in ("cert", "key")}
    client = {"tls_client_cert": ours.cert, "tls_client_key": ours.key}
    security = Security(require_encryption=True, tls_ca_file=ours.ca, **roles, **client)
    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50, "security": security}
    with LocalCluster(n_workers=1, host="tls://127.0.0.1", **options) as made:
        address = made.scheduler_address
        assert address.startswith("tls://")
        assert dict(map_unordered(fail, [0, 1], Compute(address, None, None, ours))) == {0: 0, 1: 1}
        monkeypatch.setattr("pipeline.compute.CONNECT_TIMEOUT_S", 2.0)
        for stranger in (Compute(address, None, None, theirs), Compute(address.replace("tls", "tcp"), None, None)):
            with pytest.raises(PipelineError, match="no Dask scheduler answers at"):
                list(map_unordered(fail, [0], stranger))


def test_tls_files_that_are_not_there(tmp_path: Path) -> None:
    tls = replace(authority(tmp_path), key=str(tmp_path / "nowhere.pem"))
    with pytest.raises(PipelineError, match=r"compute.tls.key: no file .*nowhere.pem"):
        list(map_unordered(fail, [0], Compute("tls://127.0.0.1:1", None, None, tls)))


def test_tls_scheduler_and_files_go_together() -> None:
    tree = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    tree["compute"] |= {"scheduler": "tls://somewhere:8786"}
    with pytest.raises(ConfigError, match=r"compute.tls is null, but compute.scheduler is 'tls://somewhere:8786'"):
        from_dict(tree)
    tree["compute"]["tls"] = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
    assert from_dict(tree).compute.tls == Tls("ca.pem", "cert.pem", "key.pem")


def test_workers_with_several_threads_are_refused() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, host="127.0.0.1", dashboard_address=None, silence_logs=50
        ) as made,
        pytest.raises(PipelineError, match="--nthreads 1"),
    ):
        list(map_unordered(fail, [0], Compute(made.scheduler_address, None, None)))


def test_sharing_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.compute.cores", lambda: 8)
    assert worker_count(Compute("local", None, None), 100) == 8
    assert worker_count(Compute("local", None, None), 3) == 3
    assert threads(Compute("local", 2, None), 100) == 4
    assert threads(Compute("local", 2, 3), 100) == 3
    assert threads(Compute("serial", 2, None), 100) == 8
    assert threads(Compute("tcp://somewhere:1", None, None), 100) == 1


SLEEPER = """
import logging, sys, time
from distributed import Nanny
from pipeline.compute import map_unordered
from pipeline.compute import Compute
from stages.cli import setup_logging

def nap(state, item):
    print("napping", flush=True)
    time.sleep(60)

async def cancelled(nanny, code):  # as now and then, when the cluster closes beside its workers
    logging.getLogger("distributed.nanny").error("Traceback (most recent call last): CancelledError")

if __name__ == "__main__":
    setup_logging()
    Nanny._on_worker_exit = cancelled
    try:
        list(map_unordered(nap, range(2), Compute("local", 1, 1)))
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_an_interrupt(kill: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, kill) if kill == signal.SIGINT else process.kill()
    _, stderr = process.communicate(timeout=120)
    if kill == signal.SIGINT:
        assert process.returncode == 1
        assert stderr.strip().splitlines()[-1] == "interrupted"
        assert "Traceback" not in stderr
    deadline = time.monotonic() + 20
    while _group_lives(process.pid):
        assert time.monotonic() < deadline, "workers outlived the run"
        time.sleep(0.2)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def processes(folder: Path, compute: Compute, items: int) -> set[int]:
    """Run `items` squares; return the processes that they ran in."""
    results = dict(map_unordered(square, range(items), compute, setup=Make(folder)))
    assert {item: result for item, (result, _) in results.items()} == {i: i * i for i in range(items)}
    return {pid for _, pid in results.values()}


def test_kept_workers_are_shared_by_calls_each_with_states_of_its_own(tmp_path: Path) -> None:
    with kept_workers():
        first = processes(tmp_path, TWO, 20)
        assert processes(tmp_path, TWO, 20) == first and processes(tmp_path, TWO, 1) < first
        with pytest.raises(DataError, match="item 2 is bad"):
            list(map_unordered(fail, range(20), TWO))
        assert processes(tmp_path, TWO, 20) == first
        assert dict(map_unordered(die, range(2), TWO, lost=lambda item: -item)) == {0: 0, 1: -1}
        assert processes(tmp_path, TWO, 20)
    made, closed = ((tmp_path / name).read_text().split() for name in ("made", "closed"))
    assert sorted(made) == sorted(closed)
    assert not any(Path(f"/proc/{pid}").exists() for pid in made)


def test_kept_workers_give_way_to_more(tmp_path: Path) -> None:
    with kept_workers():
        (one,) = processes(tmp_path, ONE, 3)
        two = processes(tmp_path, TWO, 20)
        assert len(two) == 2 and one not in two
        assert processes(tmp_path, SERIAL, 2) == {os.getpid()}
        assert processes(tmp_path, ONE, 3) <= two
    assert not processes(tmp_path, ONE, 3) & two
