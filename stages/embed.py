"""Stage one: frozen CLIP over all frames and instructions, once, into a Zarr store.

    python -m stages.embed                            # every suite of params.yaml
    python -m stages.embed --suite libero_spatial     # one of them
    python -m stages.embed --repair                   # damaged shards, made anew
    python -m stages.embed --verify                   # check the stores, and encode a sample of rows once more

Reads data/demos/<suite>/, writes data/embeddings/<suite>.zarr (see cache/schema.py). A store that is there and is of
the same encoder, settings and demonstrations is left alone. Stopped at any time, also by kill -9, and started again it
goes on with the shards that are left, which it keeps in .scratch/embed/, and ends in the same bytes. Shards that did
not change since the last build are taken over. The store holds nothing of time or machine; what the build took goes to
.scratch/embed/<suite>.json.
"""

import contextlib
import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cache import reuse
from cache.build import STORE, build, is_current, repair
from cache.codec import shard_key
from cache.errors import StoreError
from cache.ledger import Receipt
from cache.plan import Plan, differences
from cache.reader import open_store
from cache.schema import Field
from cache.verify import verify
from pipeline.compute import map_unordered, threads, worker_count
from pipeline.config import Params
from pipeline.embed import plan as planning
from pipeline.embed.audit import compare
from pipeline.embed.worker import LANES, BrokenEpisode
from pipeline.encode.clip import ClipEncoder
from pipeline.errors import DataError
from pipeline.libero.demos.read import recorded_with, scan
from pipeline.libero.suites import tasks
from pipeline.provenance import provenance
from stages import cli

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Embed what params.yaml asks for."""
    parser = cli.parser(__doc__)
    parser.add_argument("--suite", help="only this one (default: all of data.suites)")
    parser.add_argument("--demos", default="data/demos", help="directory to read (default: %(default)s)")
    parser.add_argument("--out", default="data/embeddings", help="directory to write (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/embed", help="unfinished work (default: %(default)s)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--repair", action="store_true", help="make damaged shards of finished stores anew, no others")
    mode.add_argument("--verify", action="store_true", help="build nothing; exit status 1 if a store is damaged")
    parser.add_argument("--sample", type=int, default=256, help="--verify: rows to encode again (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="--verify: of the choice of rows (default: %(default)s)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    problems: list[str] = []
    for suite in (args.suite,) if args.suite else params.data.suites:
        if args.verify:
            problems += check(params, suite, Path(args.demos), Path(args.out), args.sample, args.seed)
        else:
            embed(params, suite, Path(args.demos), Path(args.out), Path(args.scratch), args.repair)
    if problems:
        sys.exit("\n".join([*problems, f"error: {len(problems)} problem(s)"]))


def embed(params: Params, suite: str, root: Path, out: Path, scratch: Path, mend: bool = False) -> None:
    """Bring the store of one suite into `<out>/<suite>.zarr`, whole or not at all; or mend the one that is there."""
    found = planning.find(params.embed, root, suite, tasks(suite, params.data.tasks.get(suite)))
    encoder, batch_size = planning.make_encoder(params.embed)
    target = out / f"{suite}.zarr"
    while True:
        made = planning.plan(params.embed, found, encoder)
        job = Job(params, made, encoder, batch_size, target, scratch / suite)
        if mend:
            units = job.repair()
            print(f"{target}: {f'made units {units} anew' if units else 'sound, nothing to repair'}")
            return
        if is_current(target, made):
            print(f"{target}: up to date ({made.rows} rows, fingerprint {made.fingerprint[:12]})")
            return
        explain(target, made)
        try:
            took = job.build()
            break
        except BrokenEpisode as error:
            if params.embed.on_invalid == "stop":
                raise DataError(
                    f"{error} What is finished is kept. To go on without it, set embed.on_invalid: quarantine"
                ) from error
            job.salvage()
            found = found.without(error.payload, str(error), root, params.embed.cameras)
    record = {"fingerprint": made.fingerprint, "took": took, "embed": asdict(params.embed), "provenance": provenance()}
    (scratch / f"{suite}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"{target}: {made.rows} rows of {len(made.episodes)} episodes, {took['images']} images in "
        f"{took['seconds']:.0f} s ({took['images_per_s']:.1f}/s), fingerprint {made.fingerprint[:12]}"
    )


class Job:
    """The build, or the repair, of one store."""

    def __init__(
        self, params: Params, made: Plan, encoder: ClipEncoder, batch_size: int, target: Path, scratch: Path
    ) -> None:
        self._params, self._made, self._encoder, self._batch_size = params, made, encoder, batch_size
        self._target, self._work, self._keep = target, scratch / made.fingerprint[:16], scratch / "units"
        self._execution = planning.execution(encoder, batch_size)
        self._receipts: list[Receipt] = []

    def build(self) -> dict[str, float]:
        """Build the store; return what it took."""
        with self._progress() as progress:
            build(**self._arguments(progress), keep=self._keep)
        return progress.took()

    def repair(self) -> list[int]:
        """Mend the store; return the units that were made anew."""
        with self._progress() as progress:
            return repair(**self._arguments(progress))

    def salvage(self) -> None:
        """Keep the finished units of a build that failed, for the build of another plan, and delete the rest."""
        for receipt in self._receipts:
            shards = {
                field.name: self._work / STORE / shard_key(field.name, 1 + len(field.shape), receipt.unit)
                for field in self._made.fields
            }
            try:
                reuse.put(self._keep, receipt, shards, self._execution)
            except OSError as error:  # no hard links there
                log.warning("%s: finished shards cannot be kept (%s); they are made again", self._keep, error)
                break
        shutil.rmtree(self._work)

    @contextlib.contextmanager
    def _progress(self) -> Iterator["Progress"]:
        announce(self._params, self._made, self._encoder, self._batch_size)
        progress = Progress(self._made, len(self._params.embed.cameras) * self._params.embed.views)
        try:
            yield progress
        finally:
            progress.close()

    def _arguments(self, progress: "Progress") -> dict[str, Any]:
        def report(receipt: Receipt, resumed: bool) -> None:
            self._receipts.append(receipt)
            progress.report(receipt, resumed)

        return {
            "plan": self._made,
            "text_embedding": self._encoder.text(list(self._made.instructions)),
            "factory": planning.make_rows(self._params.embed, self._made.fields, self._encoder, self._batch_size),
            "target": self._target,
            "work": self._work,
            "run": partial(map_unordered, compute=self._params.compute, lanes=LANES, heard=progress.heard),
            "execution": self._execution,
            "report": report,
        }


def explain(target: Path, made: Plan) -> None:
    """Log why a store that is there is not the one that is asked for: both sides."""
    try:
        found = differences(open_store(target).attrs, made.attributes())
    except StoreError:
        return
    log.warning("%s is of something else and will be replaced: %s", target, "; ".join(found))


def check(params: Params, suite: str, root: Path, out: Path, rows: int, seed: int) -> list[str]:
    """Check the store of one suite against itself and against its demonstrations; return what is wrong."""
    target = out / f"{suite}.zarr"
    problems = [f"{target}: {problem}" for problem in verify(target)]
    store = open_store(target)
    encoder, batch_size = planning.make_encoder(params.embed)
    chosen = tasks(suite, params.data.tasks.get(suite))
    if set(store.cameras) != set(params.embed.cameras):
        raise DataError(
            f"{target}: has the cameras {', '.join(store.cameras)}, embed.cameras asks for "
            f"{', '.join(params.embed.cameras)}. Set it back to check it, or embed anew: python -m stages.embed"
        )
    demos = {demo.source: demo for demo in scan(root, suite, chosen, store.cameras)[0]}
    one = next(iter(demos.values()), None)
    sim, size = (recorded_with(one.file), one.frame_size) if one else (None, store.identity["frame_size"])
    if other := differences(store.identity, planning.identity(params.embed, suite, encoder, sim, size)):
        raise DataError(
            f"{target}: was not made with the settings as they are now: {'; '.join(other)}. "
            "Set them back to check it, or embed anew: python -m stages.embed"
        )
    fields = [Field(name, (a := store.array(name)).shape[1:], str(a.dtype), ()) for name in store.fields]
    embedder = planning.make_rows(params.embed, fields, encoder, batch_size)()
    try:
        result = compare(store, demos, embedder, rows, seed)
    finally:
        embedder.close()
    print(
        f"{target}: {result.rows} of {store.rows} rows encoded again: {result.equal_rows} equal bit for bit, cosine at "
        f"least {result.min_cosine:.6f}, largest difference {result.max_difference:.3g}; "
        f"{result.missing_rows} rows drawn have no demonstration here"
    )
    return [*problems, *(f"{target}: {problem}" for problem in result.problems)]


def announce(params: Params, made: Plan, encoder: ClipEncoder, batch_size: int) -> None:
    """Log where the encoder runs, and how fast."""
    workers = worker_count(params.compute, made.unit_count)
    log.info(
        "%s on %s in %s, batches of %d; %s, %d worker(s) with %d thread(s); %d rows in %d shards%s",
        encoder.name,
        encoder.device_name,
        encoder.precision,
        batch_size,
        params.compute.scheduler,
        workers,
        threads(params.compute, made.unit_count),
        made.rows,
        made.unit_count,
        speed(params, encoder, batch_size),
    )


def speed(params: Params, encoder: ClipEncoder, batch_size: int) -> str:
    """Return what the encoder alone does, as text; nothing where finding out would keep a GPU from its workers."""
    if encoder.device.type == "cpu":
        return f"; {rate(encoder, min(batch_size, 16)):.0f} images/s in this process"
    if params.compute.scheduler == "serial":
        return f"; {rate(encoder, batch_size):.0f} images/s"
    return ""


def rate(encoder: ClipEncoder, batch: int) -> float:
    """Return images per second of the encoder alone, of one batch after one to warm up."""
    images = encoder.prepare(np.zeros((batch, 128, 128, 3), np.uint8))
    encoder.forward(images[:2])
    started = time.perf_counter()
    encoder.forward(images)
    return batch / (time.perf_counter() - started)


class Progress:
    """A bar that counts images, as they are encoded, and what the build took."""

    def __init__(self, made: Plan, per_row: int) -> None:
        self._per_row = per_row
        self._started = time.perf_counter()
        self._images = 0
        self._resumed = 0
        self._under_way: dict[int, int] = {}  # unit -> images that are counted already
        self._finished: set[int] = set()
        self._lock = threading.Lock()
        self._bar = tqdm(total=made.rows * per_row, desc="embeddings", unit="image", smoothing=0)

    def heard(self, message: tuple[int, int]) -> None:
        """Count what a worker tells: (unit, images of it that are encoded). From any thread."""
        unit, images = message
        with self._lock:
            if unit not in self._finished:  # what is late must not count twice
                self._bar.update(images - self._under_way.get(unit, 0))
                self._under_way[unit] = images

    def report(self, receipt: Receipt, resumed: bool) -> None:
        """Count one finished unit."""
        images = receipt.rows * self._per_row
        with self._lock:
            self._finished.add(receipt.unit)
            if resumed:
                self._resumed += images
                self._bar.initial += images  # not done now: it must not count towards the rate
            else:
                self._images += images
            self._bar.update(images - self._under_way.pop(receipt.unit, 0))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def took(self) -> dict[str, float]:
        """Return images embedded now and before, seconds since the start, and images per second of now."""
        seconds = time.perf_counter() - self._started
        return {
            "images": self._images,
            "images_resumed": self._resumed,
            "seconds": round(seconds, 2),
            "images_per_s": round(self._images / seconds, 2),
        }


if __name__ == "__main__":
    cli.run(main)
