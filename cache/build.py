"""Build a store: resumable in a working directory, then checked, then renamed into place, whole or not at all.

The engine knows neither encoder nor executor. It is handed a picklable `factory`, whose product computes the rows of a
unit, and `run`, which applies a function to items wherever it likes (pipeline.compute.map_unordered fits).
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache import schema
from cache.decode import shard_key
from cache.errors import StoreError
from cache.fingerprint import Plan
from cache.ledger import Ledger, Receipt, fsync_directory, fsync_file
from cache.lock import exclusive
from cache.reader import open_store
from cache.shard import MakeWriter, Rows, Task, write_unit
from cache.units import starts
from cache.verify import verify

log = logging.getLogger(__name__)

Run = Callable[..., Iterator[tuple[Task, Receipt]]]
"""run(fn, items, setup=...) yields (item, fn(setup(), item)) as they end, in any order."""
STORE, LEDGER = "store.zarr", "ledger.jsonl"


def serial(
    fn: Callable[[Any, Task], Receipt], items: Iterable[Task], setup: Callable[[], Any]
) -> Iterator[tuple[Task, Receipt]]:
    """Run in this process, one after the other."""
    state = setup()
    for item in items:
        yield item, fn(state, item)


def is_current(target: Path, plan: Plan) -> bool:
    """Return whether a finished store of this very plan is in place."""
    try:
        return open_store(target).fingerprint == plan.fingerprint
    except StoreError:
        return False


def build(
    plan: Plan,
    text_embedding: np.ndarray,
    factory: Callable[[], Rows],
    target: Path,
    work: Path,
    run: Run = serial,
    execution: Mapping[str, Any] | None = None,
    report: Callable[[Receipt, bool], None] | None = None,
) -> None:
    """Build the store of `plan` at `target`, going on with what an earlier call left in `work`.

    Args:
        text_embedding: (K, D) float32, of the plan's instructions.
        factory: picklable; `factory()(unit)` gives the rows of a unit.
        target: replaced when the new store is complete and verified, not before.
        work: directory for the unfinished store, of this plan alone. On the same file system a rename publishes.
        execution: JSON-able; how rows are computed beyond the plan, as far as their last bits may depend on it. A
            build that was begun under another execution is begun anew.
        report: called as report(receipt, resumed) for each unit, also for those of an earlier call.

    Raises:
        StoreError: another build at work, no room, rows that do not fit the schema, or failed verification.
    """
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    with exclusive(work / "lock"):
        store, ledger = _open(plan, text_embedding, work, dict(execution or {}))
        try:
            _fill(plan, store, ledger, factory, run, report)
            _finish(plan, store, ledger)
        finally:
            ledger.close()
        publish(store, target)
        ledger.path.unlink()


def _open(plan: Plan, text_embedding: np.ndarray, work: Path, execution: dict[str, Any]) -> tuple[Path, Ledger]:
    store, path = work / STORE, work / LEDGER
    header = {"fingerprint": plan.fingerprint, "execution": execution}
    for orphan in work.rglob("*.partial"):  # of writers that were killed
        orphan.unlink(missing_ok=True)
    ledger = Ledger.resume(path, header) if store.exists() else None
    if ledger is None:
        if path.exists():
            log.warning("%s was begun with other versions or settings and is begun anew", work)
        path.unlink(missing_ok=True)
        shutil.rmtree(store, ignore_errors=True)
        _create(plan, text_embedding, store)
        ledger = Ledger.begin(path, header)
    return store, ledger


def _create(plan: Plan, text_embedding: np.ndarray, store: Path) -> None:
    """Write all of the store but its shards. The order of attributes and arrays is fixed, and so are the bytes."""
    root = zarr.create_group(store, zarr_format=3, attributes=plan.attributes())
    for field in plan.fields:
        schema.create_field(root, field, plan.padded_rows, plan.shard_rows, plan.chunk_rows)
    edges = starts(plan.episodes)
    schema.create_table(root, "episode/start", edges[:-1], ("episode",))
    schema.create_table(root, "episode/length", np.diff(edges), ("episode",))
    schema.create_table(root, "episode/task", np.array([e.task for e in plan.episodes], np.int64), ("episode",))
    schema.create_table(root, "episode/source", [e.source for e in plan.episodes], ("episode",))
    schema.create_table(root, "episode/digest", [e.digest for e in plan.episodes], ("episode",))
    schema.create_table(root, "text/embedding", text_embedding.astype(np.float32), ("text", "feature"))
    schema.create_table(root, "text/instruction", list(plan.instructions), ("text",))
    schema.create_table(root, "text/task", np.array(plan.task_ids, np.int64), ("text",))


def _fill(
    plan: Plan,
    store: Path,
    ledger: Ledger,
    factory: Callable[[], Rows],
    run: Run,
    report: Callable[[Receipt, bool], None] | None,
) -> None:
    done = {unit for unit, receipt in ledger.receipts.items() if _intact(store, plan, receipt)}
    for unit in sorted(done):
        if report:
            report(ledger.receipts[unit], True)
    todo = [Task(unit, plan.unit_key(unit)) for unit in plan.units() if unit.index not in done]
    if not todo:
        return
    setup = MakeWriter(str(store), plan.fingerprint, plan.fields, plan.shard_rows, factory)
    for _, receipt in run(write_unit, todo, setup=setup):
        ledger.add(receipt)
        if report:
            report(receipt, False)


def _shards(store: Path, plan: Plan, unit: int) -> dict[str, Path]:
    """Return the files of a unit."""
    return {field.name: store / shard_key(field.name, 1 + len(field.shape), unit) for field in plan.fields}


def _intact(store: Path, plan: Plan, receipt: Receipt) -> bool:
    """Return whether a unit's files are there. What is in them is checked at the end."""
    paths = _shards(store, plan, receipt.unit)
    return all(path.is_file() and path.stat().st_size == receipt.shards[name][0] for name, path in paths.items())


def _finish(plan: Plan, store: Path, ledger: Ledger) -> None:
    """Write the table of digests, which makes the store a whole one, and check everything."""
    digests = np.zeros((plan.unit_count, len(plan.fields), 32), np.uint8)
    for unit in range(plan.unit_count):
        for column, field in enumerate(plan.fields):
            sha256 = ledger.receipts[unit].shards[field.name][1]
            digests[unit, column] = np.frombuffer(bytes.fromhex(sha256), np.uint8)
    shutil.rmtree(store / "integrity", ignore_errors=True)
    schema.create_table(zarr.open_group(store, mode="r+"), "integrity/sha256", digests, ("shard", "field", "byte"))
    problems = verify(store)
    if not problems:
        return
    for problem in problems:
        if problem.unit is not None:  # so that the next run makes it again
            _shards(store, plan, problem.unit)[problem.array].unlink(missing_ok=True)
    raise StoreError(f"{store}: {len(problems)} problems, first {problems[0]}. Start again: bad shards are made anew")


def publish(store: Path, target: Path) -> None:
    """Move a finished store into place. What was there before is removed only then."""
    for path in store.rglob("*"):
        if path.name == "zarr.json" or path.parent.name == "c":  # metadata and tables; shards are flushed already
            fsync_directory(path) if path.is_dir() else fsync_file(path)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{target.name}.replaced.partial")
    shutil.rmtree(old, ignore_errors=True)
    staged = _onto_file_system(store, target)
    if target.exists():
        target.replace(old)
    staged.replace(target)
    fsync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(store, ignore_errors=True)


def _onto_file_system(store: Path, target: Path) -> Path:
    """Return a path beside the target from where a rename works: the store itself, if it is on the same file system."""
    if store.stat().st_dev == target.parent.stat().st_dev:
        return store
    staged = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        shutil.copytree(store, staged)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = " Make room and start again." if error.errno == errno.ENOSPC else ""
        raise StoreError(f"{target}: cannot be written: {reason}.{hint}") from error
    return staged
