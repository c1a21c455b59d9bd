"""Check a finished store against itself, and some of its rows, encoded once more, against its demonstrations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.plan import differences
from cache.reader import Store, open_store
from cache.units import Episode, Unit, units
from cache.verify import verify
from pipeline.data.demos import Demo, Task, digest, scan
from pipeline.embed import plan as planning
from pipeline.embed.settings import Embed
from pipeline.embed.worker import Embedder
from pipeline.errors import DataError

MIN_COSINE = 0.999
"""Between a stored feature and one computed now. The same batch on the same device and versions gives the same bits;
other kernels round otherwise: in bf16 (8 bits) cosines stay above this, see tests/encode/test_clip.py. Low-dimensional
rows are copied, not computed, and must be equal."""


@dataclass
class Comparison:
    """The outcome of encoding again.

    Attributes:
        rows: compared, all cameras and views of them.
        equal_rows: of these, bit for bit.
        missing_rows: drawn, but their demonstrations are not there.
        min_cosine: of any feature.
        max_difference: of any value of a feature.
        problems: what is wrong, one line each.
    """

    rows: int
    equal_rows: int
    missing_rows: int
    min_cosine: float
    max_difference: float
    problems: list[str]


def audit(
    settings: Embed, tasks: Sequence[Task], demos: Path, target: Path, rows: int, seed: int
) -> tuple[str, list[str]]:
    """Check the store at `target`.

    Args:
        tasks: of one suite.
        demos: directory that holds `<suite>/<task>_demo.hdf5`.
        rows: about how many to encode again.
        seed: of their choice.

    Returns:
        What was compared, in words, and what is wrong, one line each.

    Raises:
        StoreError: no store there.
        DataError: it was made with other settings.
    """
    problems = [f"{target}: {problem}" for problem in verify(target)]
    store = open_store(target)
    if set(store.cameras) != set(settings.cameras):
        raise DataError(
            f"{target}: has the cameras {', '.join(store.cameras)}, embed.cameras asks for "
            f"{', '.join(settings.cameras)}. Set it back to check it, or embed anew: python -m stages.embed"
        )
    settings, encoder = planning.load_encoder(settings)
    found = scan(demos, tasks[0].suite, tasks, store.cameras)[0]
    stored: dict[str, Any] = {name: store.identity[name] for name in ("sim", "own") if name in store.identity}
    made = planning.recorded(settings, found) if found else stored
    if other := differences(store.identity, planning.identity(settings, tasks[0].suite, encoder, made)):
        raise DataError(
            f"{target}: was not made with the settings as they are now: {'; '.join(other)}. "
            "Set them back to check it, or embed anew: python -m stages.embed"
        )
    embedder = Embedder(settings, store.plan.fields, encoder)
    try:
        result = compare(store, {demo.source: demo for demo in found}, embedder, rows, seed)
    finally:
        embedder.close()
    summary = (
        f"{target}: {result.rows} of {store.rows} rows encoded again: {result.equal_rows} equal bit for bit, cosine at "
        f"least {result.min_cosine:.6f}, largest difference {result.max_difference:.3g}; "
        f"{result.missing_rows} rows drawn have no demonstration here"
    )
    return summary, [*problems, *(f"{target}: {problem}" for problem in result.problems)]


def compare(store: Store, demos: Mapping[str, Demo], embedder: Embedder, rows: int, seed: int) -> Comparison:
    """Compare about `rows` random rows with what the demonstrations give now.

    Whole batches are drawn, the very ones that a build with this batch size encodes together.

    Args:
        store: a finished store, of the embedder's encoder and settings.
        demos: by what the store calls them.
        embedder: as a build would use it.
        rows: to compare; at least one batch is.
        seed: of the choice.
    """
    index = store.episodes
    result = Comparison(0, 0, 0, 1.0, 0.0, [])
    faults: dict[str, str | None] = {}
    for start, unit in _draw(store, embedder.batch_size, rows, seed):
        sources = [segment.payload for segment in unit.segments]
        if not all(source in demos for source in sources):
            result.missing_rows += unit.rows
            continue
        for source in sources:
            if source not in faults:
                faults[source] = _fault(demos[source], index.digest[index.source.index(source)])
        if not any(faults[source] for source in sources):
            segments = tuple(replace(segment, payload=demos[segment.payload]) for segment in unit.segments)
            _compare(result, store, start, unit.rows, embedder(Unit(unit.index, segments)))
    result.problems += [fault for fault in faults.values() if fault]
    return result


def _draw(store: Store, batch_size: int, rows: int, seed: int) -> Iterator[tuple[int, Unit]]:
    """Yield random batches as units of their own, with the number of their first row; payloads are source names."""
    index = store.episodes
    lengths = [int(n) for n in index.length]
    episodes = [Episode(n, 0, s, d, payload=s) for n, s, d in zip(lengths, index.source, index.digest, strict=True)]
    per_unit = -(-store.shard_rows // batch_size)
    last = store.rows - (store.rows - 1) // store.shard_rows * store.shard_rows  # rows of the last unit
    batches = (store.rows - 1) // store.shard_rows * per_unit + -(-last // batch_size)
    chosen = np.random.default_rng(seed).choice(batches, min(batches, -(-rows // batch_size)), replace=False)
    wanted: dict[int, list[int]] = {}
    for batch in sorted(int(b) for b in chosen):
        wanted.setdefault(batch // per_unit, []).append(batch % per_unit)
    for unit in units(episodes, store.shard_rows):
        for batch in wanted.get(unit.index, ()):
            low = batch * batch_size
            yield unit.index * store.shard_rows + low, _cut(unit, low, min(low + batch_size, unit.rows))


def _cut(unit: Unit, low: int, high: int) -> Unit:
    """Return rows `low:high` of a unit."""
    segments, start = [], 0
    for segment in unit.segments:
        first, last = max(low - start, 0), min(high - start, segment.stop - segment.start)
        if first < last:
            segments.append(replace(segment, start=segment.start + first, stop=segment.start + last))
        start += segment.stop - segment.start
    return Unit(unit.index, tuple(segments))


def _fault(demo: Demo, stored: str) -> str | None:
    try:
        now = digest(demo)
    except DataError as error:
        return str(error)
    if now == stored:
        return None
    return f"{demo}: has changed since it was embedded (SHA-256 {now[:12]}, the store has {stored[:12]})"


def _compare(result: Comparison, store: Store, start: int, rows: int, found: Mapping[str, np.ndarray]) -> None:
    equal = np.ones(rows, bool)
    for name, now in found.items():
        stored = store.read(name, start, start + rows)
        same = (stored == now).reshape(rows, -1).all(1)
        equal &= same
        if name.startswith("lowdim/"):
            if not same.all():
                row = start + int(np.argmin(same))
                result.problems.append(
                    f"{name}: row {row} is {stored[row - start]}, its demonstration has {now[row - start]}"
                )
            continue
        a, b = stored.astype(np.float64), now.astype(np.float64)
        cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
        lowest = cosine.reshape(rows, -1).min(1)
        if not lowest.min() >= MIN_COSINE:
            row = start + int(np.argmin(lowest))
            result.problems.append(f"{name}: row {row} has cosine {lowest.min():.6f} to its frame's feature now")
        result.min_cosine = min(result.min_cosine, float(lowest.min()))
        result.max_difference = max(result.max_difference, float(np.abs(a - b).max()))
    result.rows += rows
    result.equal_rows += int(equal.sum())
