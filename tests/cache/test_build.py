"""A build ends in one and the same store, whatever happens on the way."""

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cache import open_store, schema, stream
from cache.build import build, is_current
from cache.errors import StoreError
from cache.ledger import Ledger, Receipt
from cache.plan import Plan
from cache.units import Unit
from cache.verify import verify
from tests.cache.synthetic import TEXT, MakeFake, expected, make_plan, tree


def make(folder: Path, plan: Plan | None = None, **options: Any) -> Path:
    """Build below `folder` and return the store."""
    options = {"factory": MakeFake(), **options}
    build(plan or make_plan(), TEXT, target=folder / "out.zarr", work=folder / "work", **options)
    return folder / "out.zarr"


def test_content_is_what_was_computed(tmp_path: Path) -> None:
    plan = make_plan()
    store = open_store(make(tmp_path, plan))
    for name, values in expected(plan).items():
        np.testing.assert_array_equal(store.read(name), values)
    assert (store.rows, store.dim, store.cameras) == (87, 6, ("agentview", "eye_in_hand"))
    assert store.fingerprint == plan.fingerprint
    np.testing.assert_array_equal(store.episodes.start, [0, 5, 26, 27, 35, 43, 73, 75])
    np.testing.assert_array_equal(store.episodes.length, [5, 21, 1, 8, 8, 30, 2, 12])
    np.testing.assert_array_equal(store.episodes.task, [0, 1] * 4)
    assert store.episodes.source[4] == "file1/demo_4"
    assert store.texts.instructions == ["lift the bowl", "open the drawer"]
    np.testing.assert_array_equal(store.texts.embedding, TEXT)
    np.testing.assert_array_equal(store.texts.task_ids, [3, 7])


def test_layout_is_plain_zarr_v3(tmp_path: Path) -> None:
    target = make(tmp_path)
    array = zarr.open_array(target / "image/agentview", mode="r")
    assert (array.metadata.zarr_format, array.shape, array.dtype) == (3, (96, 2, 6), np.float16)
    assert (array.shards, array.chunks) == ((16, 2, 6), (4, 2, 6))
    assert np.isnan(array[87:]).all()
    shards = sorted(path.relative_to(target / "image/agentview/c") for path in target.glob("image/agentview/c/*/*/*"))
    assert shards == [Path(f"{i}/0/0") for i in range(6)]
    assert zarr.open_group(target)["text/instruction"][1] == "open the drawer"


def test_wide_rows_have_small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {field.name: field.chunk_rows(1024) for field in schema.fields(("a",), 1, 512, tokens=(49, 768))}
    assert (rows["image/a"], rows["grid/a"], rows["lowdim/action"]) == (1024, 16, 1024)  # a grid of 7 x 7: 75 KB a row
    monkeypatch.setattr(schema, "CHUNK_BYTES", 50)  # image/*: 24 bytes a row, 4 rows a chunk by the plan
    plan = make_plan()
    target = make(tmp_path, plan)
    group = zarr.open_group(target, mode="r")
    chunks = [group[name].chunks[0] for name in ("image/agentview", "lowdim/action")]  # type: ignore[union-attr]
    assert chunks == [2, 1]
    store = open_store(target)
    assert not verify(target)
    for name, values in expected(plan).items():
        np.testing.assert_array_equal(group[name][: plan.rows], values)  # type: ignore[index]
        np.testing.assert_array_equal(store.read(name), values)
        np.testing.assert_array_equal(store.read(name, 13, 30), values[13:30])
    for batch in stream([store], ["image/agentview", "lowdim/action"], batch_rows=8, memory_bytes=10_000, seed=0):
        for name, values in batch.values.items():
            np.testing.assert_array_equal(values, expected(plan)[name][batch.rows])


def test_same_bytes_in_any_order_and_place(tmp_path: Path) -> None:
    def backwards(fn: Callable, items: Iterable, setup: Callable) -> Iterator:
        for item in reversed(list(items)):
            yield item, fn(setup(), item)  # and with a new state each time

    def twice(fn: Callable, items: Iterable, setup: Callable) -> Iterator:
        state = setup()
        for item in items:
            fn(state, item)
            yield item, fn(state, item)

    plain = tree(make(tmp_path / "a"))
    assert tree(make(tmp_path / "b", run=backwards)) == plain
    assert tree(make(tmp_path / "c", run=twice, execution={"batch_size": 3})) == plain


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def stop_after(n: int) -> Callable:
        def run(fn: Callable, items: Iterable, setup: Callable) -> Iterator:
            state = setup()
            for done, item in enumerate(items):
                if done == n:
                    raise KeyboardInterrupt
                yield item, fn(state, item)

        return run

    calls = tmp_path / "calls"
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, factory=MakeFake(calls), run=stop_after(2))
    ledger = tmp_path / "work/ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes() + b'{"unit": 2, "key')  # a note that was being written
    (tmp_path / "work/store.zarr/image/agentview/c/4/0").mkdir(parents=True)
    (tmp_path / "work/store.zarr/image/agentview/c/4/0/0.abc.partial").write_bytes(b"half")
    (tmp_path / "work/store.zarr/lowdim/action/c/1/0").unlink()  # noted, and lost since
    assert not (tmp_path / "out.zarr").exists()
    with pytest.raises(StoreError, match="never finished"):
        open_store(tmp_path / "work/store.zarr")
    seen: list[tuple[int, bool]] = []
    make(tmp_path, factory=MakeFake(calls), report=lambda receipt, resumed: seen.append((receipt.unit, resumed)))
    assert calls.read_text().split() == ["0", "1", "1", "2", "3", "4", "5"]
    assert seen == [(0, True), (1, False), (2, False), (3, False), (4, False), (5, False)]
    assert tree(tmp_path / "out.zarr") == tree(make(tmp_path / "other"))
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["lock"]


def test_another_execution_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def one(fn: Callable, items: Iterable, setup: Callable) -> Iterator:
        yield next(iter(items)), fn(setup(), next(iter(items)))
        raise KeyboardInterrupt

    calls = tmp_path / "calls"
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, factory=MakeFake(calls), run=one, execution={"torch": "1"})
    make(tmp_path, factory=MakeFake(calls), execution={"torch": "2"})
    assert calls.read_text().split() == ["0", *"012345"]
    assert "begun anew" in caplog.text


def test_replaces_a_store_only_with_a_whole_one(tmp_path: Path) -> None:
    old = tree(make(tmp_path))
    plan = make_plan(salt="new")

    def bad(unit: Unit) -> dict[str, np.ndarray]:
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        make(tmp_path, plan, factory=lambda: bad)
    assert tree(tmp_path / "out.zarr") == old
    assert not is_current(tmp_path / "out.zarr", plan)
    (tmp_path / "work/lock").unlink()
    make(tmp_path, plan)
    assert is_current(tmp_path / "out.zarr", plan)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "work"]


def test_publishes_across_file_systems(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    work = shm / f"vla-flow-test-{os.getpid()}"
    try:
        build(make_plan(), TEXT, MakeFake(), tmp_path / "out.zarr", work)
    finally:
        subprocess.run(["rm", "-rf", str(work)], check=True)
    assert tree(tmp_path / "out.zarr") == tree(make(tmp_path / "plain"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "plain"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: {**rows, "lowdim/action": rows["lowdim/action"][:-1]}, "lowdim/action is float32.* not float32"),
        (lambda rows: {**rows, "lowdim/action": rows["lowdim/action"].astype(float)}, "lowdim/action is float64"),
        (
            lambda rows: {**rows, "lowdim/action": rows["lowdim/action"] * np.nan},
            "lowdim/action has values",
        ),
        (lambda rows: {**rows, "extra": rows["lowdim/action"]}, "the store has"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, change: Callable, message: str) -> None:
    with pytest.raises(StoreError, match=f"unit 0: .*{message}"):
        make(tmp_path, factory=lambda: lambda unit: change(MakeFake().rows(unit)))


def test_ledger_refuses_another_header(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger.begin(path, {"fingerprint": "a"})
    ledger.add(Receipt(4, "key", 16, {"image/agentview": (5, "00")}, 0.1))
    ledger.close()
    assert Ledger.resume(path, {"fingerprint": "b"}) is None
    assert Ledger.resume(tmp_path / "none", {"fingerprint": "a"}) is None
    again = Ledger.resume(path, {"fingerprint": "a"})
    assert again is not None
    assert again.receipts == {4: Receipt(4, "key", 16, {"image/agentview": (5, "00")}, 0.1)}
    again.close()


def test_what_a_killed_worker_left_is_not_published(tmp_path: Path) -> None:
    def leaving_halves(fn: Callable, items: Iterable, setup: Callable) -> Iterator:
        state = setup()
        for item in items:
            yield item, fn(state, item)
            shards = tmp_path / "work/store.zarr/image/agentview/c/0/0"
            (shards / f"0.{item.unit.index}.partial").write_bytes(b"half")

    make(tmp_path, run=leaving_halves)
    assert tree(tmp_path / "out.zarr") == tree(make(tmp_path / "other"))
