"""Build a store: resumable in a working directory, then checked, then renamed into place, whole or not at all.

The engine knows neither encoder nor executor. It is handed a picklable `factory`, whose product computes the rows of a
unit, and `run`, which applies a function to items wherever it likes (pipeline.compute.map_unordered fits).
"""

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache import reuse, schema
from cache.codec import shard_key
from cache.errors import StoreError, not_written
from cache.files import LocalFiles
from cache.ledger import Ledger, Receipt, fsync_directory, fsync_file
from cache.lock import exclusive
from cache.plan import Plan
from cache.reader import REBUILD, REPLACE, Store, open_store
from cache.units import starts
from cache.verify import THREADS, verify
from cache.writer import MakeWriter, Rows, WorkUnit, write_unit

log = logging.getLogger(__name__)

Run = Callable[..., Iterator[tuple[WorkUnit, Receipt]]]
"""run(fn, items, setup=...) yields (item, fn(setup(), item)) as they end, in any order."""
Report = Callable[[Receipt, bool], None]
Found = tuple[Receipt, Mapping[str, Path]]
"""A finished unit and its files."""
STORE, LEDGER = "store.zarr", "ledger.jsonl"
FRESH = "new-"  # of stores that are being created


def serial(
    fn: Callable[[Any, WorkUnit], Receipt], items: Iterable[WorkUnit], setup: Callable[[], Any]
) -> Iterator[tuple[WorkUnit, Receipt]]:
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
    report: Report | None = None,
    keep: Path | None = None,
) -> None:
    """Build the store of `plan` at `target`, going on with what an earlier call left in `work`.

    Args:
        plan: what to build.
        text_embedding: (K, D) float32, of the plan's instructions.
        factory: picklable; `factory()(unit)` gives the rows of a unit.
        target: replaced when the new store is complete and verified, not before.
        work: directory for the unfinished store, of this plan alone. On the same file system a rename publishes.
        run: applies a function to items.
        execution: JSON-able; how rows are computed beyond the plan, as far as their last bits may depend on it. A
            build that was begun under another execution is begun anew.
        report: called as report(receipt, resumed) for each unit; resumed ones were not computed in this call.
        keep: directory, of this target alone and on its file system, for links to the finished shards. A later build
            of another plan takes over from there the units that have not changed, and computes the others.

    Raises:
        StoreError: another build at work, no room, rows that do not fit the schema, or failed verification.
    """
    execution = dict(execution or {})
    with _working(work, target) as work:
        find = None if keep is None else partial(_kept, keep, execution)
        ledger = _make(plan, text_embedding, factory, target, work, run, execution, report, find)
        if keep is not None:
            _keep(plan, target, keep, ledger, execution)


def repair(
    plan: Plan,
    text_embedding: np.ndarray,
    factory: Callable[[], Rows],
    target: Path,
    work: Path,
    run: Run = serial,
    execution: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> list[int]:
    """Make the damaged or missing shards of the store at `target` anew; return the numbers of their units.

    All happens in `work`, on links to (or copies of) the sound shards. The store is replaced by the repaired one when
    that is complete and verified; until then it stays as it is. Stopped at any time, it goes on where it was.

    Args:
        plan: what the store was built of.
        text_embedding: (K, D) float32, of the plan's instructions.
        factory: as in `build`, and so are target, work, run, execution and report.
        target: the store, on a local disk.
        work: the directory that a build of this plan would use.
        run: applies a function to items.
        execution: how rows are computed now; if the bytes differ from what was there, a warning says so.
        report: called for each unit, for sound ones with resumed=True.

    Raises:
        StoreError: no store there, one of another plan, or with damage outside of its shards: build it anew.
    """
    with _working(work, target) as work:
        found = open_store(target)
        if found.fingerprint != plan.fingerprint:
            raise StoreError(
                f"{target}: was built of something else: its fingerprint is {found.fingerprint}, that of the settings "
                f"and demonstrations as they are now {plan.fingerprint}. Repairing would mix the two. {REBUILD}"
            )
        problems = verify(target)
        if beyond := [problem for problem in problems if problem.unit is None]:
            raise StoreError(f"{target}: more than shards is damaged: {beyond[0]}. {REPLACE}")
        bad = sorted({problem.unit for problem in problems if problem.unit is not None})
        if not bad:
            return []
        log.warning("%s: making %d of %d units anew: %s", target, len(bad), plan.unit_count, bad)
        find = partial(_sound, found, frozenset(bad))
        ledger = _make(plan, text_embedding, factory, target, work, run, dict(execution or {}), report, find)
        _compare(found, ledger, bad)
    return bad


def _make(
    plan: Plan,
    text_embedding: np.ndarray,
    factory: Callable[[], Rows],
    target: Path,
    work: Path,
    run: Run,
    execution: dict[str, Any],
    report: Report | None,
    find: Callable[[WorkUnit], Found | None] | None,
) -> Ledger:
    """Take over the units that `find` finds, compute the others, check all, publish; return the closed ledger."""
    store, ledger = _open(plan, text_embedding, work, execution)
    with contextlib.closing(ledger):
        tasks = [WorkUnit(unit, plan.unit_key(unit)) for unit in plan.units()]
        if find is not None:
            _take(plan, store, ledger, tasks, find)
        _fill(plan, store, ledger, tasks, factory, run, report)
        _finish(plan, store, ledger)
    with _explained(target):
        publish(store, target, plan.fields)
    ledger.path.unlink()
    return ledger


@contextlib.contextmanager
def _working(work: Path, target: Path) -> Iterator[Path]:
    """Hold the working directory, and put a store back that a kill left aside while its successor was published."""
    work = work.resolve()
    with _explained(work):
        work.mkdir(parents=True, exist_ok=True)
    with exclusive(work / "lock"):
        target = target.resolve()
        if not target.exists() and _replaced(target).exists():
            _replaced(target).replace(target)
        yield work


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error


def _open(plan: Plan, text_embedding: np.ndarray, work: Path, execution: dict[str, Any]) -> tuple[Path, Ledger]:
    store, path = work / STORE, work / LEDGER
    header = {"schema": schema.SCHEMA_VERSION, "fingerprint": plan.fingerprint, "execution": execution}
    _sweep(work)
    ledger = Ledger.resume(path, header) if store.exists() else None
    if ledger is None:
        if path.exists():
            log.warning("%s was begun with other versions or settings and is begun anew", work)
        path.unlink(missing_ok=True)
        shutil.rmtree(store, ignore_errors=True)
        # Made under a name of its own: after an error, threads of zarr may still be writing below the path they know.
        fresh = work / f"{FRESH}{uuid.uuid4().hex}"
        with _explained(store):
            _create(plan, text_embedding, fresh)
            fresh.rename(store)
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


def _shards(store: Path, plan: Plan, unit: int) -> dict[str, Path]:
    """Return the files of a unit."""
    return {field.name: store / shard_key(field.name, 1 + len(field.shape), unit) for field in plan.fields}


def _intact(store: Path, plan: Plan, receipt: Receipt) -> bool:
    """Return whether a unit's files are there. What is in them is checked at the end."""
    paths = _shards(store, plan, receipt.unit)
    return all(path.is_file() and path.stat().st_size == receipt.shards[name][0] for name, path in paths.items())


def _take(
    plan: Plan, store: Path, ledger: Ledger, tasks: Sequence[WorkUnit], find: Callable[[WorkUnit], Found | None]
) -> None:
    """Take over the units that `find` finds, but for those that are there already."""
    missing = [task for task in tasks if task.unit.index not in ledger.receipts]
    with ThreadPoolExecutor(THREADS) as pool, _explained(store):
        for found in pool.map(find, missing):
            if found is None:
                continue
            receipt, sources = found
            for name, path in _shards(store, plan, receipt.unit).items():
                reuse.adopt(sources[name], path)
            ledger.add(receipt)


def _kept(keep: Path, execution: Mapping[str, Any], task: WorkUnit) -> Found | None:
    receipt = reuse.find(keep, task.key, execution)
    if receipt is None:
        return None
    return replace(receipt, unit=task.unit.index), {name: keep / task.key / name for name in receipt.shards}


def _sound(store: Store, bad: frozenset[int], task: WorkUnit) -> Found | None:
    """Find a unit in a store that has been verified."""
    unit = task.unit.index
    if unit in bad:
        return None
    keys = {name: store.shard_key(name, unit) for name in store.fields}
    paths = {name: Path(store.location) / key for name, key in keys.items()}
    shards = {name: (path.stat().st_size, store.digests[keys[name]]) for name, path in paths.items()}
    return Receipt(unit, task.key, task.unit.rows, shards, 0.0), paths


def _fill(
    plan: Plan,
    store: Path,
    ledger: Ledger,
    tasks: Sequence[WorkUnit],
    factory: Callable[[], Rows],
    run: Run,
    report: Report | None,
) -> None:
    done = {unit for unit, receipt in ledger.receipts.items() if _intact(store, plan, receipt)}
    for unit in sorted(done):
        if report:
            report(ledger.receipts[unit], True)
    todo = [task for task in tasks if task.unit.index not in done]
    if not todo:
        return
    setup = MakeWriter(str(store), plan.fingerprint, plan.fields, plan.shard_rows, factory)
    for _, receipt in run(write_unit, todo, setup=setup):
        ledger.add(receipt)
        if report:
            report(receipt, False)


def _finish(plan: Plan, store: Path, ledger: Ledger) -> None:
    """Write the table of digests, which makes the store a whole one, and check everything."""
    shutil.rmtree(store / "integrity", ignore_errors=True)
    digests = {
        shard_key(field.name, 1 + len(field.shape), unit): receipt.shards[field.name][1]
        for unit, receipt in ledger.receipts.items()
        for field in plan.fields
    }
    own = {"integrity/zarr.json", f"{schema.DIGESTS}/zarr.json"}
    others = (LocalFiles(str(store)).keys() | own) - digests.keys()
    with _explained(store):
        root = zarr.open_group(store, mode="r+")
        table = schema.create_table(root, schema.DIGESTS, [""] * len(digests | dict.fromkeys(others)), ("file",))
        digests |= {key: reuse.file_sha256(store / key) for key in others}
        table[...] = np.array([f"{digests[key]}  {key}" for key in sorted(digests)], object)
    problems = verify(store)
    if not problems:
        return
    for problem in problems:
        if problem.unit is not None:  # so that the next run makes it again
            _shards(store, plan, problem.unit)[problem.array].unlink(missing_ok=True)
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    raise StoreError(f"{store}: {count}, first {problems[0]}. Start again: bad shards are made anew")


def _compare(found: Store, ledger: Ledger, units: Sequence[int]) -> None:
    """Say so if units came out otherwise than they were: on another device or version, last bits may differ."""
    for unit in units:
        for name, (_, sha256) in ledger.receipts[unit].shards.items():
            if sha256 != found.digests[found.shard_key(name, unit)]:
                log.warning("%s: shard %d of %s differs from what it was before the damage", found.location, unit, name)


def _keep(plan: Plan, target: Path, keep: Path, ledger: Ledger, execution: Mapping[str, Any]) -> None:
    """Link the finished shards into `keep`, and remove what is there of other plans."""
    try:
        keep.mkdir(parents=True, exist_ok=True)
        for receipt in ledger.receipts.values():
            reuse.put(keep, receipt, _shards(target, plan, receipt.unit), execution)
    except OSError as error:
        log.warning("%s: no hard links to %s (%s): a build of a changed plan will compute all", keep, target, error)
    reuse.sweep(keep, {receipt.key for receipt in ledger.receipts.values()})


def publish(store: Path, target: Path, fields: Sequence[schema.Field]) -> None:
    """Move a finished store into place. What was there before is removed only then."""
    _flush(store, fields)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    old = _replaced(target)
    shutil.rmtree(old, ignore_errors=True)
    staged = _onto_file_system(store, target)
    if target.exists():
        target.replace(old)
    staged.replace(target)
    _sweep(target)  # nobody writes there by now: a unit made twice is still written to where the store was
    fsync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(store, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left half written."""
    for orphan in folder.rglob("*.partial"):
        orphan.unlink(missing_ok=True)
    for unfinished in folder.glob(f"{FRESH}*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _replaced(target: Path) -> Path:
    """Return where a store is moved while its successor takes its place."""
    return target.with_name(f".{target.name}.replaced.partial")


def _flush(store: Path, fields: Sequence[schema.Field]) -> None:
    """Flush all directories and files to the disk but the shards, which are there."""
    shards = tuple(f"{store / field.name / 'c'}{os.sep}" for field in fields)
    for folder, _, names in os.walk(store):
        if not f"{folder}{os.sep}".startswith(shards):
            for name in names:
                fsync_file(Path(folder, name))
        fsync_directory(Path(folder))


def _onto_file_system(store: Path, target: Path) -> Path:
    """Return a path beside the target from where a rename works: the store itself, if it is on the same file system."""
    if store.stat().st_dev == target.parent.stat().st_dev:
        return store
    staged = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(store, staged)
    for folder, _, names in os.walk(staged):
        for name in names:
            fsync_file(Path(folder, name))
        fsync_directory(Path(folder))
    return staged
