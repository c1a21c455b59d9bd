"""What happens to a build from outside: kills, a full disk, a second builder. The store is the same in the end."""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache.build import STORE, build
from cache.errors import StoreError
from cache.verify import verify
from cache.writer import MakeWriter
from tests.cache.synthetic import FIELDS, TEXT, MakeFake, make_plan, tree
from tests.disk import small_disk

ROOT = Path(__file__).parents[2]
PLAN = make_plan(shard_rows=8)  # 11 units


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store that nothing happened to."""
    folder = tmp_path_factory.mktemp("plain")
    build(PLAN, TEXT, MakeFake(), folder / "out.zarr", folder / "work")
    return tree(folder / "out.zarr")


# Builds in children that it kills at random points of time, until there were ten kills. It forks, and does so before
# zarr has started any thread, because a process that has imported all takes no time to start.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from cache.build import build
from tests.cache.synthetic import TEXT, MakeFake, make_plan

folder, rng = Path(sys.argv[1]), random.Random(0)

def start(name):
    child = os.fork()
    if child == 0:
        target = folder / f"{name}.zarr"
        build(make_plan(shard_rows=8), TEXT, MakeFake(folder / f"{name}.calls"), target, folder / name)
        os._exit(0)
    return child

began = time.perf_counter()
os.waitpid(start("whole"), 0)
whole = time.perf_counter() - began
kills = {}
while sum(kills.values()) < 10:
    name = f"killed-{len(kills)}"
    kills[name] = 0
    while not (folder / f"{name}.zarr").exists():
        child = start(name)
        time.sleep(whole * rng.uniform(0.1, 0.9) * (0.4 + 0.1 * kills[name]))  # longer each time: it must end
        os.kill(child, signal.SIGKILL)
        kills[name] += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(json.dumps(kills))
"""


def test_kill_nine_at_random_points(tmp_path: Path, plain: dict[str, bytes]) -> None:
    command = [sys.executable, "-c", KILLER, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert sum(kills.values()) >= 10
    for store, count in kills.items():
        assert tree(tmp_path / f"{store}.zarr") == plain
        assert not list(tmp_path.glob(f".{store}.zarr*"))
        computed = (tmp_path / f"{store}.calls").read_text().count("\n")
        assert computed <= PLAN.unit_count + count  # a kill loses the one unit that was being computed


BUILDER = """
import sys
from pathlib import Path
from cache.build import build
from tests.cache.synthetic import TEXT, MakeFake, make_plan
folder = Path(sys.argv[1])
build(make_plan(shard_rows=8), TEXT, MakeFake(folder / "calls", seconds=0.3), folder / "out.zarr", folder / "work")
"""


def test_two_builders_at_once(tmp_path: Path, plain: dict[str, bytes]) -> None:
    first = subprocess.Popen([sys.executable, "-c", BUILDER, str(tmp_path)], cwd=ROOT)
    try:
        while not (tmp_path / "calls").exists():
            assert first.poll() is None
            time.sleep(0.01)
        with pytest.raises(StoreError, match=rf"another build is at work there \(process {first.pid}\)"):
            build(PLAN, TEXT, MakeFake(), tmp_path / "out.zarr", tmp_path / "work")
        assert first.wait(60) == 0
    finally:
        first.kill()
        first.wait()
    assert tree(tmp_path / "out.zarr") == plain


@pytest.mark.parametrize("free_kib", [8, 60, 150, 250])
def test_a_full_disk(tmp_path: Path, plain: dict[str, bytes], free_kib: int) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        calls = tmp_path / "calls"
        filler = disk / "filler"
        filler.write_bytes(bytes((1024 - free_kib) * 1024))
        with pytest.raises(StoreError, match=r"No space left on device. Make room and start again"):
            build(PLAN, TEXT, MakeFake(calls), disk / "out.zarr", disk / "work")
        assert not (disk / "out.zarr").exists()
        filler.unlink()
        build(PLAN, TEXT, MakeFake(calls), disk / "out.zarr", disk / "work")
        assert tree(disk / "out.zarr") == plain
        computed = calls.read_text().split()
        assert len(computed) <= PLAN.unit_count + 1  # what was finished before was not computed again


def test_a_file_size_limit(tmp_path: Path, plain: dict[str, bytes]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = tmp_path / "calls"
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # zarr.json fits, and the ledger does for some units
    try:
        with pytest.raises(StoreError, match=r"ledger.jsonl: cannot be written: File too large. Make room and start"):
            build(PLAN, TEXT, MakeFake(calls), tmp_path / "out.zarr", tmp_path / "work")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    build(PLAN, TEXT, MakeFake(calls), tmp_path / "out.zarr", tmp_path / "work")
    assert tree(tmp_path / "out.zarr") == plain
    assert len(calls.read_text().split()) == PLAN.unit_count + 1


def test_a_worker_that_sees_another_store(tmp_path: Path) -> None:
    build(PLAN, TEXT, MakeFake(), tmp_path / "out.zarr", tmp_path / "work")
    other = make_plan(salt="other")
    spec = MakeWriter(str(tmp_path / "out.zarr"), other.fingerprint, FIELDS, 8, MakeFake())
    found, wanted = PLAN.fingerprint[:12], other.fingerprint[:12]
    with pytest.raises(StoreError, match=f"fingerprint {found}, not {wanted}.*same file system"):
        spec()
    with pytest.raises(StoreError, match=f"fingerprint None, not {wanted}"):
        MakeWriter(str(tmp_path / "none.zarr"), other.fingerprint, FIELDS, 8, MakeFake())()


def test_a_ledger_that_a_power_cut_spoilt(tmp_path: Path, plain: dict[str, bytes]) -> None:
    work = tmp_path / "work"

    def stop_after_five(fn, items, setup):  # type: ignore[no-untyped-def]
        state = setup()
        for number, item in enumerate(items):
            if number == 5:
                raise KeyboardInterrupt
            yield item, fn(state, item)

    for spoilt, computed in ((lambda content: content[:-30] + bytes(30), 7), (lambda content: bytes(len(content)), 11)):
        shutil.rmtree(work, ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            build(PLAN, TEXT, MakeFake(), tmp_path / "out.zarr", work, run=stop_after_five)
        ledger = work / "ledger.jsonl"
        ledger.write_bytes(spoilt(ledger.read_bytes()))
        calls = tmp_path / f"calls-{computed}"
        build(PLAN, TEXT, MakeFake(calls), tmp_path / "out.zarr", work)
        assert len(calls.read_text().split()) == computed
        assert tree(tmp_path / "out.zarr") == plain


def test_a_shard_that_was_lost_on_the_way_is_made_again(tmp_path: Path, plain: dict[str, bytes]) -> None:
    """Damage between the writing and the end of the build is found before the store is published."""

    def damaging(fn, items, setup):  # type: ignore[no-untyped-def]
        state = setup()
        for item in items:
            yield item, fn(state, item)
        path = tmp_path / "work" / STORE / "lowdim/action/c/3/0"
        path.write_bytes(path.read_bytes()[:-1] + b"x")

    with pytest.raises(StoreError, match=r"1 problem, first lowdim/action shard 3: .* Start again"):
        build(PLAN, TEXT, MakeFake(), tmp_path / "out.zarr", tmp_path / "work", run=damaging)
    assert not (tmp_path / "out.zarr").exists()
    calls = tmp_path / "calls"
    build(PLAN, TEXT, MakeFake(calls), tmp_path / "out.zarr", tmp_path / "work")
    assert calls.read_text().split() == ["3"]
    assert verify(tmp_path / "out.zarr") == []
    assert tree(tmp_path / "out.zarr") == plain


ALONE = """
import sys
import numpy as np
import zarr
root = zarr.open_group(sys.argv[1], mode="r")
rows = root.attrs["rows"]
action = root["lowdim/action"][:rows]
image = root["image/agentview"][:rows]
start, length = root["episode/start"][3], root["episode/length"][3]
assert action.shape == (rows, 7) and np.isfinite(action).all()
assert image.shape == (rows, 2, 6) and image.dtype == np.float16 and np.isfinite(image).all()
assert root["text/instruction"][1] == "open the drawer"
ours = [name for name in sys.modules if name.split(".")[0] in ("cache", "pipeline", "stages", "tests")]
assert not ours, ours
print(rows, start, length, float(action.sum()))
"""


def test_zarr_python_reads_it_alone(tmp_path: Path) -> None:
    build(PLAN, TEXT, MakeFake(), tmp_path / "out.zarr", tmp_path / "work")
    command = [sys.executable, "-I", "-c", ALONE, "out.zarr"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["87", "27", "8"]
