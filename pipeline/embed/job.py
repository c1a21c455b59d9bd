"""Bring the store of one suite into place: plan it, build it, and go on without a demonstration that breaks."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import build, reuse
from cache.codec import shard_key
from cache.errors import StoreError
from cache.ledger import Receipt
from cache.plan import Plan, differences
from cache.reader import open_store
from pipeline.compute import Compute, map_unordered, threads, worker_count
from pipeline.data.demos import Task
from pipeline.embed import plan as planning
from pipeline.embed.progress import Progress
from pipeline.embed.settings import Embed
from pipeline.embed.worker import CONCURRENCY, BrokenEpisode, MakeEmbedder
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.weights import hub_source
from pipeline.errors import DataError
from pipeline.files import bytes_below, require_writable
from pipeline.provenance import provenance

log = logging.getLogger(__name__)


def embed(settings: Embed, compute: Compute, tasks: Sequence[Task], demos: Path, target: Path, scratch: Path) -> str:
    """Bring a suite's store to `target`, whole or not at all; return what was done.

    Args:
        tasks: of one suite.
        demos: directory that holds `<suite>/<task>_demo.hdf5`.
        target: replaced if a store of something else is there.
        scratch: directory of this store alone, for unfinished work; what the build took goes to `<scratch>.json`.

    Raises:
        DataError: demonstrations that are missing, unlike each other or, by `embed.on_invalid`, damaged; or a target
            that cannot be written.
        StoreError: see `cache.build.build`.
    """
    found = planning.find(settings, demos, tasks)
    require_writable(target.parent)
    settings, encoder = planning.load_encoder(settings)
    while True:
        job = Job(settings, compute, planning.plan(settings, found, encoder), encoder, target, scratch)
        plan = job.plan
        if build.is_current(target, plan):
            return f"{target}: up to date ({plan.rows} rows, fingerprint {plan.fingerprint[:12]})"
        explain(target, plan)
        require_writable(scratch, plan.bytes - bytes_below(job.work))
        try:
            took = job.build()
            break
        except BrokenEpisode as error:
            if settings.on_invalid == "stop":
                raise DataError(
                    f"{error} What is finished is kept. To go on without it, set embed.on_invalid: quarantine"
                ) from error
            job.salvage()
            found = found.without(error.payload, str(error), demos, settings.cameras)
    record = {
        "fingerprint": plan.fingerprint,
        "took": took,
        "embed": asdict(settings),
        "weights": hub_source(settings.encoder),
        "provenance": provenance(),
    }
    scratch.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return (
        f"{target}: {plan.rows} rows of {len(plan.episodes)} episodes, {took['images']} images in "
        f"{took['seconds']:.0f} s ({took['images_per_s']:.1f}/s), fingerprint {plan.fingerprint[:12]}"
    )


def repair(settings: Embed, compute: Compute, tasks: Sequence[Task], demos: Path, target: Path, scratch: Path) -> str:
    """Make the damaged shards of the store at `target` anew, no others; return what was done. Arguments: as `embed`."""
    found = planning.find(settings, demos, tasks)
    settings, encoder = planning.load_encoder(settings)
    units = Job(settings, compute, planning.plan(settings, found, encoder), encoder, target, scratch).repair()
    return f"{target}: {f'made units {units} anew' if units else 'sound, nothing to repair'}"


class Job:
    """The build, or the repair, of one store."""

    def __init__(
        self, settings: Embed, compute: Compute, plan: Plan, encoder: ClipEncoder, target: Path, scratch: Path
    ) -> None:
        self.plan = plan
        self._settings, self._compute, self._encoder = settings, on_gpus(compute, encoder.device), encoder
        self._target, self.work, self._keep = target, scratch / plan.fingerprint[:16], scratch / "units"
        self._execution = planning.execution(settings, encoder)
        self._receipts: list[Receipt] = []

    def build(self) -> dict[str, int | float]:
        """Build the store; return what it took."""
        with self._progress() as progress:
            build.build(**self._arguments(progress), keep=self._keep)
        return progress.took()

    def repair(self) -> list[int]:
        """Mend the store; return the units that were made anew."""
        with self._progress() as progress:
            return build.repair(**self._arguments(progress))

    def salvage(self) -> None:
        """Keep the finished units of a build that failed, for the build of another plan, and delete the rest."""
        for receipt in self._receipts:
            shards = {
                field.name: self.work / build.STORE / shard_key(field.name, 1 + len(field.shape), receipt.unit)
                for field in self.plan.fields
            }
            try:
                reuse.put(self._keep, receipt, shards, self._execution)
            except OSError as error:  # no hard links there
                log.warning("%s: finished shards cannot be kept (%s); they are made again", self._keep, error)
                break
        # Under another name: a thread that was given up may still write, and would fill the directory while it empties.
        doomed = self.work.with_name(f"{self.work.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        self.work.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Progress]:
        announce(self._settings, self._compute, self.plan, self._encoder)
        progress = Progress(self.plan, len(self._settings.cameras) * self._settings.views)
        try:
            yield progress
        finally:
            progress.close()

    def _arguments(self, progress: Progress) -> dict[str, Any]:
        def report(receipt: Receipt, resumed: bool) -> None:
            self._receipts.append(receipt)
            progress.finished(receipt, resumed)

        return {
            "plan": self.plan,
            "text_embedding": self._encoder.text(list(self.plan.instructions)),
            "factory": MakeEmbedder(self._settings, self._encoder.identity, self.plan.fields),
            "target": self._target,
            "work": self.work,
            "run": partial(map_unordered, compute=self._compute, concurrency=CONCURRENCY, on_progress=progress.encoded),
            "execution": self._execution,
            "report": report,
        }


def on_gpus(compute: Compute, device: torch.device) -> Compute:
    """Return where to run: on GPUs, one local worker for each. More of them on one GPU only get in each other's way."""
    if device.type == "cpu" or compute.scheduler != "local":
        return compute
    gpus = torch.cuda.device_count()
    return replace(compute, workers=min(compute.workers or gpus, gpus))


def explain(target: Path, plan: Plan) -> None:
    """Log why a store that is there is not the one that is asked for: both sides, or what is wrong with it."""
    if not target.exists():
        return
    try:
        found = differences(open_store(target).attrs, plan.attributes())
    except StoreError as error:
        log.warning("%s cannot be used and will be replaced: %s", target, error)
        return
    log.warning("%s is of something else and will be replaced: %s", target, "; ".join(found))


def announce(settings: Embed, compute: Compute, plan: Plan, encoder: ClipEncoder) -> None:
    """Log where the encoder runs; and how fast, where finding out keeps no GPU from its workers."""
    log.info(
        "%s on %s in %s, batches of %s; %s, %d worker(s) with %d thread(s); %d rows in %d shards",
        encoder.name,
        encoder.device_name,
        encoder.precision,
        settings.batch_size,
        compute.scheduler,
        worker_count(compute, plan.unit_count),
        threads(compute, plan.unit_count),
        plan.rows,
        plan.unit_count,
    )
    if encoder.device.type == "cpu" or compute.scheduler == "serial":
        log.info("the encoder alone: %.0f images/s in this process", rate(encoder, settings.batch_size or 1))


def rate(encoder: ClipEncoder, batch_size: int) -> float:
    """Return images per second of the encoder alone, of one batch after one to warm up."""
    batch = batch_size if encoder.device.type == "cuda" else min(batch_size, 16)
    images = encoder.prepare(np.zeros((batch, 128, 128, 3), np.uint8))
    encoder.forward(images[:2])
    started = time.perf_counter()
    encoder.forward(images)
    return batch / (time.perf_counter() - started)
