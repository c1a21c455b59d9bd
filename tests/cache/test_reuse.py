"""Finished shards are taken over, by a build of a changed plan and by a repair, and only by right."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache import open_store
from cache.build import build, repair
from cache.errors import StoreError
from cache.plan import Plan
from cache.verify import verify
from tests.cache.synthetic import LENGTHS, TEXT, MakeFake, make_plan, tree

LONGER = (*LENGTHS, 40)


def make(folder: Path, plan: Plan, lengths: tuple[int, ...] = LENGTHS, **options: Any) -> list[int]:
    """Build below `folder` and return the units that were computed."""
    calls = folder / "calls"
    calls.parent.mkdir(exist_ok=True)
    calls.write_text("")
    options = {"keep": folder / "keep", **options}
    build(plan, TEXT, MakeFake(calls, lengths), folder / "out.zarr", folder / "work" / plan.fingerprint, **options)
    return [int(line) for line in calls.read_text().split()]


def plain(folder: Path, plan: Plan, lengths: tuple[int, ...]) -> dict[str, bytes]:
    """Return the files of a store of the plan that was built from nothing."""
    make(folder, plan, lengths, keep=None)
    return tree(folder / "out.zarr")


def used(folder: Path) -> int:
    """Return the bytes on disk below a folder; what has several names counts once."""
    found = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(found.values())


def test_added_episodes_cost_only_the_shards_that_change(tmp_path: Path) -> None:
    assert make(tmp_path, make_plan()) == [0, 1, 2, 3, 4, 5]
    store_bytes = used(tmp_path / "out.zarr")
    assert used(tmp_path) - store_bytes < 6 * 1500  # the receipts
    shutil.rmtree(tmp_path / "out.zarr")  # as DVC does before a stage runs again
    seen: list[tuple[int, bool]] = []
    computed = make(
        tmp_path, make_plan(LONGER), LONGER, report=lambda receipt, resumed: seen.append((receipt.unit, resumed))
    )
    assert computed == [5, 6, 7]  # the last shard was part full
    assert seen == [*((unit, True) for unit in range(5)), (5, False), (6, False), (7, False)]
    assert tree(tmp_path / "out.zarr") == plain(tmp_path / "plain", make_plan(LONGER), LONGER)
    assert len(list((tmp_path / "keep").iterdir())) == 8  # what the first plan alone used is swept


def test_episodes_that_go_or_change(tmp_path: Path) -> None:
    make(tmp_path, make_plan())
    plan = make_plan()
    other = replace(plan, episodes=(*plan.episodes[:-1], replace(plan.episodes[-1], digest="other data")))
    assert make(tmp_path, other) == [4, 5]  # rows 75 to 87
    shorter = make_plan(LENGTHS[:-1])  # 75 rows: the fifth of the shards is part full now
    assert make(tmp_path, shorter) == [4]
    assert tree(tmp_path / "out.zarr") == plain(tmp_path / "plain", shorter, LENGTHS)
    assert len(list((tmp_path / "keep").iterdir())) == 5


def test_another_identity_or_execution_takes_nothing_over(tmp_path: Path) -> None:
    make(tmp_path, make_plan(), execution={"torch": "1"})
    assert make(tmp_path, make_plan(LONGER), LONGER, execution={"torch": "2"}) == list(range(8))
    assert make(tmp_path, make_plan(salt="other encoder"), execution={"torch": "2"}) == list(range(6))


def test_damaged_links_are_not_taken_over(tmp_path: Path) -> None:
    make(tmp_path, make_plan())
    folders = {key.name: key for key in (tmp_path / "keep").iterdir()}
    plan = make_plan(LONGER)
    flipped, truncated, lost, unfinished = (folders[plan.unit_key(unit)] for unit in list(plan.units())[:4])
    content = bytearray((flipped / "image/agentview").read_bytes())
    content[7] ^= 1
    (flipped / "image/agentview").write_bytes(content)
    os.truncate(truncated / "lowdim/action", 10)
    (lost / "lowdim/action").unlink()
    (unfinished / "receipt.json").write_text('{"receipt": {"un')
    assert make(tmp_path, plan, LONGER) == [0, 1, 2, 3, 5, 6, 7]
    assert tree(tmp_path / "out.zarr") == plain(tmp_path / "plain", plan, LONGER)
    assert make(tmp_path, make_plan((*LONGER, 3)), (*LONGER, 3)) == [7, 8]  # the links have been mended


def test_without_hard_links_it_goes_without_reuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    assert make(tmp_path, make_plan()) == list(range(6))
    assert "no hard links to" in caplog.text
    assert used(tmp_path / "keep") == 0
    assert make(tmp_path, make_plan(LONGER), LONGER) == list(range(8))
    assert verify(tmp_path / "out.zarr") == []


def test_taking_over_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, make_plan())
    real, calls = Path.hardlink_to, [0]

    def interrupted(*args: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == 10:
            raise KeyboardInterrupt
        real(*args, **options)

    monkeypatch.setattr(Path, "hardlink_to", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, make_plan(LONGER), LONGER)
    assert make(tmp_path, make_plan(LONGER), LONGER) == [5, 6, 7]
    assert tree(tmp_path / "out.zarr") == plain(tmp_path / "plain", make_plan(LONGER), LONGER)


# repair


def damage(store: Path) -> None:
    """Damage units 1, 3 and 4: a flipped bit, a lost file, a truncated one."""
    path = store / "image/agentview/c/1/0/0"
    content = bytearray(path.read_bytes())
    content[20] ^= 128
    path.write_bytes(content)
    (store / "lowdim/action/c/3/0").unlink()
    os.truncate(store / "image/eye_in_hand/c/4/0/0", 100)


def mend(folder: Path, plan: Plan | None = None, **options: Any) -> tuple[list[int], list[int]]:
    """Repair; return the units that were said to be, and that were, made anew."""
    calls = folder / "calls"
    calls.write_text("")
    options = {"factory": MakeFake(calls), **options}
    units = repair(plan or make_plan(), TEXT, target=folder / "out.zarr", work=folder / "repair", **options)
    return units, [int(line) for line in calls.read_text().split()]


def test_repair_makes_only_the_damaged_units_anew(tmp_path: Path) -> None:
    make(tmp_path, make_plan())
    sound = tree(tmp_path / "out.zarr")
    damage(tmp_path / "out.zarr")
    assert mend(tmp_path) == ([1, 3, 4], [1, 3, 4])
    assert tree(tmp_path / "out.zarr") == sound
    assert mend(tmp_path) == ([], [])
    assert sorted(path.name for path in (tmp_path / "repair").iterdir()) == ["lock"]


def test_repair_leaves_the_store_alone_until_it_is_done(tmp_path: Path) -> None:
    make(tmp_path, make_plan())
    sound = tree(tmp_path / "out.zarr")
    damage(tmp_path / "out.zarr")
    damaged = tree(tmp_path / "out.zarr")

    def one_and_stop(fn: Callable, items: Iterable, setup: Callable) -> Iterator:
        item = next(iter(items))
        yield item, fn(setup(), item)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mend(tmp_path, run=one_and_stop)
    assert tree(tmp_path / "out.zarr") == damaged
    assert mend(tmp_path) == ([1, 3, 4], [3, 4])
    assert tree(tmp_path / "out.zarr") == sound


def test_a_store_moved_aside_by_a_killed_publication_is_found(tmp_path: Path) -> None:
    make(tmp_path, make_plan())
    sound = tree(tmp_path / "out.zarr")
    damage(tmp_path / "out.zarr")
    (tmp_path / "out.zarr").rename(tmp_path / ".out.zarr.replaced.partial")
    assert mend(tmp_path) == ([1, 3, 4], [1, 3, 4])
    assert tree(tmp_path / "out.zarr") == sound


def test_repair_says_if_the_bytes_come_out_differently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, make_plan())
    damage(tmp_path / "out.zarr")

    def otherwise() -> Callable:
        return lambda unit: {name: values * 2 for name, values in MakeFake().rows(unit).items()}

    assert mend(tmp_path, factory=otherwise)[0] == [1, 3, 4]
    assert "shard 3 of lowdim/action differs from what it was before the damage" in caplog.text
    assert verify(tmp_path / "out.zarr") == []


def test_repair_refuses_what_it_cannot_mend(tmp_path: Path) -> None:
    make(tmp_path, make_plan())
    other = make_plan(salt="new")
    found, wanted = make_plan().fingerprint, other.fingerprint
    with pytest.raises(StoreError, match=f"its fingerprint is {found}, that of the settings .* {wanted}"):
        mend(tmp_path, other)
    shutil.rmtree(tmp_path / "out.zarr/episode/task/c")
    with pytest.raises(StoreError, match=r"episode/task is missing. Delete the store and build it"):
        mend(tmp_path)
    with pytest.raises(StoreError, match="no embedding store there"):
        repair(make_plan(), TEXT, MakeFake(), tmp_path / "none.zarr", tmp_path / "repair")


def test_repair_takes_the_sound_shards_from_another_file_system(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    make(tmp_path, make_plan())
    sound = tree(tmp_path / "out.zarr")
    damage(tmp_path / "out.zarr")
    work = shm / f"vla-flow-repair-{os.getpid()}"
    try:
        assert repair(make_plan(), TEXT, MakeFake(), tmp_path / "out.zarr", work) == [1, 3, 4]
    finally:
        shutil.rmtree(work)
    assert tree(tmp_path / "out.zarr") == sound
    np.testing.assert_array_equal(open_store(tmp_path / "out.zarr").texts.embedding, TEXT)
