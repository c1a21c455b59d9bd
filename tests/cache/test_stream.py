"""A streamed epoch has each row once, well shuffled, in bounded memory, and always in the same order."""

import gc
import shutil
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cache import open_store, stream
from cache.build import build
from cache.errors import StoreError
from cache.plan import Plan
from cache.reader import Store
from cache.stream import BLOCKS
from cache.units import Unit
from tests.cache.synthetic import FIELDS, TEXT, make_plan

LENGTHS = tuple(int(n) for n in np.random.default_rng(0).integers(1, 60, 160))
NAMES = ["image/agentview", "lowdim/action"]
ROW_BYTES = 2 * 6 * 2 + 7 * 4


def numbered(plan: Plan, unit: Unit) -> dict[str, np.ndarray]:
    """Return rows that say which they are: the first action is the row's number."""
    rows = np.arange(unit.index * plan.shard_rows, unit.index * plan.shard_rows + unit.rows)
    values = {field.name: np.ones((unit.rows, *field.shape), field.dtype) for field in FIELDS}
    values["lowdim/action"][:, 0] = rows
    values["image/agentview"][:, 1, 2] = rows % 1000 + 1
    return values


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("numbered")
    plan = make_plan(LENGTHS, shard_rows=256, chunk_rows=8)
    build(plan, TEXT, lambda: lambda unit: numbered(plan, unit), folder / "s.zarr", folder / "work")
    return open_store(folder / "s.zarr")


def order(store: Store, **options: object) -> np.ndarray:
    """Return the numbers of the rows as they come, after a look at the batches."""
    settings = {"batch_rows": 32, "memory_bytes": 150_000, "seed": 0, **options}
    sizes, rows = [], []
    for batch in stream([store], NAMES, **settings):  # type: ignore[arg-type]
        np.testing.assert_array_equal(batch.values["lowdim/action"][:, 0], batch.rows)
        np.testing.assert_array_equal(batch.values["image/agentview"][:, 1, 2], batch.rows % 1000 + 1)
        assert batch.values["image/agentview"].shape == (len(batch.rows), 2, 6)
        sizes.append(len(batch.rows))
        rows.append(batch.rows)
    assert set(sizes[:-1]) <= {settings["batch_rows"]}
    assert 0 < sizes[-1] <= settings["batch_rows"]
    return np.concatenate(rows)


@pytest.mark.parametrize(("memory_bytes", "batch_rows"), [(30_000, 32), (100_000, 3), (200_000, 50), (10_000_000, 32)])
def test_each_row_once(store: Store, memory_bytes: int, batch_rows: int) -> None:
    rows = order(store, memory_bytes=memory_bytes, batch_rows=batch_rows)
    np.testing.assert_array_equal(np.sort(rows), np.arange(store.rows))


def test_batches_larger_than_windows(store: Store) -> None:
    rows = order(store, memory_bytes=500_000, batch_rows=2000)
    np.testing.assert_array_equal(np.sort(rows), np.arange(store.rows))


@pytest.mark.parametrize("episodes", [[3], [7, 8, 9, 150], list(range(0, 160, 2)), [], [159, 0]])
def test_rows_of_chosen_episodes(store: Store, episodes: list[int]) -> None:
    index = store.episodes
    expected = [np.arange(index.start[e], index.start[e] + index.length[e]) for e in sorted(episodes)]
    batches = list(stream([store], NAMES, 16, 100_000, seed=0, episodes=[episodes]))
    rows = np.concatenate([batch.rows for batch in batches]) if batches else np.empty(0)
    np.testing.assert_array_equal(np.sort(rows), np.concatenate(expected) if expected else np.empty(0))


def small(folder: Path, lengths: tuple[int, ...], shard_rows: int = 256) -> Store:
    plan = make_plan(lengths, shard_rows=shard_rows, chunk_rows=8)
    build(plan, TEXT, lambda: lambda unit: numbered(plan, unit), folder / "s.zarr", folder / "work")
    return open_store(folder / "s.zarr")


def test_several_stores_are_shuffled_together(store: Store, tmp_path: Path) -> None:
    other = small(tmp_path, (30, 70, 500))
    batches = list(stream([store, other], NAMES, 32, 150_000, seed=0, episodes=[None, [0, 2]]))
    rows = np.concatenate([batch.rows for batch in batches])
    wanted = np.r_[: store.rows, store.rows : store.rows + 30, store.rows + 100 : store.rows + 600]
    np.testing.assert_array_equal(np.sort(rows), wanted)
    for batch in batches:
        within = np.where(batch.rows < store.rows, batch.rows, batch.rows - store.rows)
        np.testing.assert_array_equal(batch.values["lowdim/action"][:, 0], within)
    mixed = [0 < (batch.rows < store.rows).sum() < len(batch.rows) for batch in batches]
    assert np.mean(mixed) > 0.9


def test_stores_of_other_shards_are_refused(store: Store, tmp_path: Path) -> None:
    other = small(tmp_path, (30, 70), shard_rows=128)
    with pytest.raises(StoreError, match=r"differ in shard_rows: 256 and 128"):
        stream([store, other], NAMES, 32, 150_000, seed=0)


def test_rows_come_as_often_as_they_are_wanted(store: Store) -> None:
    batches = list(stream([store], NAMES, 32, 150_000, seed=0, copies=lambda rows: rows % 3))
    rows = np.concatenate([batch.rows for batch in batches])
    np.testing.assert_array_equal(np.sort(rows), np.repeat(np.arange(store.rows), np.arange(store.rows) % 3))
    assert [len(batch.rows) for batch in batches[:-1]] == [32] * (len(batches) - 1)


def test_the_order_is_a_function_of_seed_and_epoch(store: Store) -> None:
    first = order(store, seed=3, epoch=1)
    np.testing.assert_array_equal(order(store, seed=3, epoch=1), first)
    for other in ({"seed": 4, "epoch": 1}, {"seed": 3, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert (order(store, **other) != first).mean() > 0.99


@pytest.mark.parametrize(("memory_bytes", "episodes"), [(150_000, 23), (10_000_000, 27)])
def test_it_shuffles_well(store: Store, memory_bytes: int, episodes: int) -> None:
    """The statistics of a full shuffle, some of them within what windows of an eighth of the store can give."""
    rows = order(store, memory_bytes=memory_bytes)
    n = len(rows)
    position = np.arange(n)
    assert abs(np.corrcoef(position, rows)[0, 1]) < 0.06
    # Neighbours: a full shuffle has a mean distance of n / 3, and next to no pair that was a pair before.
    distance = np.abs(np.diff(rows))
    assert abs(distance.mean() / (n / 3) - 1) < 0.05
    assert (distance == 1).mean() < 0.005
    # A batch is a sample of the whole store: the means of batches scatter as those of random samples do.
    means = rows[: n // 32 * 32].reshape(-1, 32).mean(1)
    assert 0.7 < means.std() / (n / np.sqrt(12 * 32)) < 1.4
    episode = np.searchsorted(store.episodes.start, rows, side="right")
    distinct = [len(set(episode[i : i + 32])) for i in range(0, n - 32, 32)]
    assert np.mean(distinct) > episodes  # a full shuffle has 29, a sample of 64 blocks 25


def test_memory_stays_within_the_bound(tmp_path: Path) -> None:
    plan = make_plan((4000,) * 8, shard_rows=8192, chunk_rows=128)
    build(plan, TEXT, lambda: lambda unit: numbered(plan, unit), tmp_path / "s.zarr", tmp_path / "work")
    store = open_store(tmp_path / "s.zarr")
    memory_bytes = 700_000
    gc.collect()
    tracemalloc.start()
    count = sum(len(batch.rows) for batch in stream([store], NAMES, 256, memory_bytes, seed=0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == store.rows
    assert store.rows * ROW_BYTES > 2 * memory_bytes
    assert 0.4 * memory_bytes < peak < memory_bytes + 200_000  # and what Python needs to read at all


def test_too_little_memory(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StoreError, match=r"1000 bytes are too little to stream image/agentview, lowdim/action"):
        stream([store], NAMES, 32, 1000, seed=0)
    stream([store], NAMES, 1, 5000, seed=0)
    assert "the rows are shuffled badly" in caplog.text
    caplog.clear()
    stream([store], NAMES, 32, 4 * BLOCKS * 4 * (ROW_BYTES + 40), seed=0)
    assert not caplog.text


def test_the_thread_ends_with_its_reader(store: Store) -> None:
    def threads() -> int:
        return sum(thread.name == "stream" for thread in threading.enumerate())

    batches = stream([store], NAMES, 32, 200_000, seed=0)
    assert threads() == 0  # nothing is read before somebody asks
    next(batches)
    assert threads() == 1
    batches.close()  # type: ignore[attr-defined]
    assert threads() == 0
    for batch in stream([store], NAMES, 32, 200_000, seed=0):
        if len(batch.rows):
            break
    del batch
    gc.collect()
    assert threads() == 0
    with pytest.raises(RuntimeError, match="a step failed"):
        for _ in stream([store], NAMES, 32, 200_000, seed=0):
            raise RuntimeError("a step failed")
    gc.collect()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == 0


def test_batches_can_be_kept(store: Store) -> None:
    kept = list(stream([store], NAMES, 32, 30_000, seed=0))
    for batch in kept:
        np.testing.assert_array_equal(batch.values["lowdim/action"][:, 0], batch.rows)


def test_damage_is_raised_where_the_rows_are_used(store: Store, tmp_path: Path) -> None:
    damaged = shutil.copytree(store.location, tmp_path / "s.zarr")
    path = damaged / "lowdim/action/c/7/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="shard 7 of lowdim/action is damaged: the checksum of chunk 0 differs"):
        for _ in stream([open_store(damaged)], NAMES, 32, 200_000, seed=0):
            pass
    assert not any(thread.name == "stream" for thread in threading.enumerate())
