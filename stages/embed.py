"""Stage one: frozen CLIP over all frames and instructions, once, into a Zarr store.

    python -m stages.embed                            # every suite of params.yaml
    python -m stages.embed --suite libero_spatial     # one of them

Reads data/demos/<suite>/, writes data/embeddings/<suite>.zarr (see cache/schema.py). A store that is there and is of
the same encoder, settings and demonstrations is left alone. Stopped at any time, also by kill -9, and started again it
goes on with the shards that are left, which it keeps in .scratch/embed/, and ends in the same bytes. The store holds
nothing of time or machine; what the build took goes to .scratch/embed/<suite>.json.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cache import schema
from cache.build import build, is_current
from cache.fingerprint import Plan
from cache.ledger import Receipt
from cache.units import Episode
from pipeline.compute import map_unordered, threads, worker_count
from pipeline.config import Embed, Params, load
from pipeline.encode.augment import Views
from pipeline.encode.clip import ClipEncoder, pick_device
from pipeline.encode.rows import MakeRows, shared_encoder
from pipeline.encode.transform import TRANSFORM_ID
from pipeline.errors import DataError
from pipeline.libero.demonstrations import Demo, Quarantined, manifest, read, recorded_with, scan
from pipeline.libero.suites import Task, tasks
from pipeline.provenance import provenance, versions
from stages import cli

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Embed what params.yaml asks for."""
    parser = cli.parser(__doc__)
    parser.add_argument("--suite", help="only this one (default: all of data.suites)")
    parser.add_argument("--demos", default="data/demos", help="directory to read (default: %(default)s)")
    parser.add_argument("--out", default="data/embeddings", help="directory to write (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/embed", help="unfinished work (default: %(default)s)")
    args = parser.parse_args(argv)
    params = load(args.params)
    for suite in (args.suite,) if args.suite else params.data.suites:
        embed(params, suite, Path(args.demos), Path(args.out), Path(args.scratch))


def embed(params: Params, suite: str, root: Path, out: Path, scratch: Path) -> None:
    """Bring the store of one suite into `<out>/<suite>.zarr`, whole or not at all."""
    chosen = tasks(suite, params.data.tasks.get(suite))
    demos, digests = usable_demos(params.embed, root, suite, chosen)
    encoder = shared_encoder(params.embed.encoder, pick_device(), params.embed.grid)
    made = plan(params.embed, suite, chosen, demos, digests, encoder)
    target = out / f"{suite}.zarr"
    if is_current(target, made):
        print(f"{target}: up to date ({made.rows} rows, fingerprint {made.fingerprint[:12]})")
        return
    rows = MakeRows(
        encoder=replace(params.embed.encoder, precision=encoder.precision),
        grid=params.embed.grid,
        identity=encoder.identity,
        read=read,
        fields=made.fields,
        views=views(params.embed),
        obs_shift=params.embed.obs_shift,
        batch_size=params.embed.batch_size,
    )
    announce(params, made, encoder)
    progress = Progress(made, len(params.embed.cameras) * params.embed.views)
    build(
        made,
        encoder.text(list(made.instructions)),
        rows,
        target,
        scratch / suite / made.fingerprint[:16],
        run=partial(map_unordered, compute=params.compute),
        execution=execution(params.embed, encoder),
        report=progress.report,
    )
    took = progress.close()
    record = {"fingerprint": made.fingerprint, "took": took, "embed": asdict(params.embed), "provenance": provenance()}
    (scratch / f"{suite}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"{target}: {made.rows} rows of {len(made.episodes)} episodes, {took['images']} images in "
        f"{took['seconds']:.0f} s ({took['images_per_s']:.1f}/s), fingerprint {made.fingerprint[:12]}"
    )


def usable_demos(
    settings: Embed, root: Path, suite: str, chosen: Sequence[Task]
) -> tuple[list[Demo], list[dict[str, Any]]]:
    """Return the demonstrations to embed and their manifest; quarantine or refuse the others, by `embed.on_invalid`.

    All tasks' first demonstrations come first, then all tasks' second ones, and so on: those that are recorded later
    go to the end of the store, and the shards before them stay as they are.

    Raises:
        DataError: one is damaged and the setting is "stop", or a task is left without any.
    """
    found, left_out = scan(root, suite, chosen, settings.cameras)
    demos: list[Demo] = []
    entries: list[dict[str, Any]] = []
    order = {task: k for k, task in enumerate(chosen)}
    for demo in sorted(found, key=lambda demo: (int(demo.name.removeprefix("demo_")), order[demo.task])):
        try:
            if demo.length <= settings.obs_shift:
                raise DataError(f"{demo.length} steps are too few for obs_shift {settings.obs_shift}")
            entries += manifest([demo])
            demos.append(demo)
        except DataError as error:
            left_out.append(Quarantined(demo.file, demo.name, str(error)))
            log.warning("quarantined %s", left_out[-1])
    if left_out and settings.on_invalid == "stop":
        raise DataError(
            f"{len(left_out)} damaged demonstrations, first {left_out[0]}. "
            "Make or download them again, or set embed.on_invalid: quarantine to leave them out"
        )
    for task in chosen:
        if not any(demo.task == task for demo in demos):
            raise DataError(
                f"{suite} task {task.id} ({task.name}) has no usable demonstration"
                f"{f'; the first problem is {left_out[0]}' if left_out else ''}. Make them: python -m stages.demos"
            )
    return demos, entries


def plan(
    settings: Embed,
    suite: str,
    chosen: Sequence[Task],
    demos: Sequence[Demo],
    entries: Sequence[dict[str, Any]],
    encoder: ClipEncoder,
) -> Plan:
    """Return what the store's bytes depend on."""
    recorded = {file: recorded_with(file) for file in dict.fromkeys(demo.file for demo in demos)}
    first, sim = next(iter(recorded.items()))
    if other := next((file for file, value in recorded.items() if value != sim), None):
        raise DataError(
            f"{other} was recorded with {recorded[other]}, {first} with {sim}. One store takes one kind of rendering: "
            "make all demonstrations of the suite in the same way"
        )
    number = {task: k for k, task in enumerate(chosen)}
    return Plan(
        identity={
            "suite": suite,
            "encoder": encoder.identity,
            "transform": TRANSFORM_ID,
            "obs_shift": settings.obs_shift,
            **views(settings).identity(),
            **({"grid": asdict(settings.grid)} if settings.grid else {}),
            "sim": sim,  # null: not recorded by this project, so LIBERO's own full rendering
        },
        fields=schema.fields(
            settings.cameras,
            settings.views,
            encoder.dim,
            all(demo.has_expert_actions for demo in demos),
            encoder.tokens,
        ),
        episodes=tuple(
            Episode(
                rows=demo.length - settings.obs_shift,
                task=number[demo.task],
                source=f"{entry['file']}/{entry['demo']}",
                digest=entry["sha256"],
                payload=demo,
            )
            for demo, entry in zip(demos, entries, strict=True)
        ),
        instructions=tuple(task.language for task in chosen),
        task_ids=tuple(task.id for task in chosen),
        shard_rows=settings.shard_rows,
        chunk_rows=settings.chunk_rows,
    )


def views(settings: Embed) -> Views:
    """Return which views of a frame the settings ask for."""
    return Views(settings.views, settings.brightness, settings.contrast, settings.view_seed)


def execution(settings: Embed, encoder: ClipEncoder) -> dict[str, Any]:
    """Return what the last bits of a feature may depend on besides the plan: kept in the ledger, not in the store.

    Threads are not among it: a test shows that their number changes nothing.
    """
    found = versions()
    return {
        "batch_size": settings.batch_size,
        "device": encoder.device.type,
        "versions": {name: found[name] for name in ("torch", "open_clip_torch", "numpy", "zarr")},
    }


def announce(params: Params, made: Plan, encoder: ClipEncoder) -> None:
    """Log where and how fast the encoder runs."""
    workers = worker_count(params.compute, made.unit_count)
    log.info(
        "%s on %s in %s, batches of %d; %s, %d worker(s) with %d thread(s); %d rows in %d shards; "
        "%.0f images/s in this process",
        encoder.name,
        encoder.device,
        encoder.precision,
        params.embed.batch_size,
        params.compute.scheduler,
        workers,
        threads(params.compute, made.unit_count),
        made.rows,
        made.unit_count,
        rate(encoder, min(params.embed.batch_size, 16)),
    )


def rate(encoder: ClipEncoder, batch: int) -> float:
    """Return images per second of the encoder alone, of one batch after one to warm up."""
    images = encoder.prepare(np.zeros((batch, 128, 128, 3), np.uint8))
    encoder.forward(images[:2])
    started = time.perf_counter()
    encoder.forward(images)
    return batch / (time.perf_counter() - started)


class Progress:
    """A bar that counts images, and what the build took."""

    def __init__(self, made: Plan, per_row: int) -> None:
        self._per_row = per_row
        self._started = time.perf_counter()
        self._images = 0
        self._resumed = 0
        self._bar = tqdm(total=made.rows * per_row, desc="embeddings", unit="image", smoothing=0)

    def report(self, receipt: Receipt, resumed: bool) -> None:
        """Count one finished unit."""
        images = receipt.rows * self._per_row
        if resumed:
            self._resumed += images
            self._bar.initial += images  # not done now: it must not count towards the rate
        else:
            self._images += images
        self._bar.update(images)

    def close(self) -> dict[str, float]:
        """Return images embedded now and before, seconds, and images per second of now."""
        self._bar.close()
        seconds = time.perf_counter() - self._started
        return {
            "images": self._images,
            "images_resumed": self._resumed,
            "seconds": round(seconds, 2),
            "images_per_s": round(self._images / seconds, 2),
        }


if __name__ == "__main__":
    cli.run(main)
