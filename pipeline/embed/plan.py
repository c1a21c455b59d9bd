"""What a store is made of: which demonstrations, in which order, encoded how."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cache import schema
from cache.plan import Plan
from cache.units import Episode
from pipeline.embed.settings import Embed
from pipeline.embed.worker import MakeRows, shared_encoder
from pipeline.encode.augment import Views
from pipeline.encode.clip import ClipEncoder, default_batch_size, pick_device, resolve_precision
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.errors import DataError
from pipeline.libero.demos.read import Demo, Quarantined, manifest, read, recorded_with, scan
from pipeline.libero.depth import DEPTH_ID, is_depth
from pipeline.libero.suites import Task
from pipeline.provenance import code_digest, versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Usable demonstrations, and for each its entry of `pipeline.libero.demos.read.manifest`.

    All tasks' first demonstrations come first, then all tasks' second ones, and so on: those that are recorded later
    go to the end of the store, and the shards before them stay as they are.
    """

    suite: str
    tasks: tuple[Task, ...]
    demos: tuple[Demo, ...]
    entries: tuple[dict[str, Any], ...]
    left_out: tuple[Quarantined, ...]

    def __post_init__(self) -> None:
        for task in self.tasks:
            if not any(demo.task == task for demo in self.demos):
                raise DataError(
                    f"{self.suite} task {task.id} ({task.name}) has no usable demonstration"
                    f"{f'; the first problem is {self.left_out[0]}' if self.left_out else ''}. "
                    "Make them: python -m stages.demos"
                )

    def without(self, broken: Demo, reason: str, root: Path, cameras: Sequence[str]) -> "Source":
        """Leave out a demonstration that could not be read, and those of its file that cannot be opened any more.

        Raises:
            DataError: the file is gone, or its task has no usable demonstration left.
        """
        usable = {demo.name for demo in scan(root, self.suite, [broken.task], cameras)[0]} - {broken.name}
        kept = [i for i, demo in enumerate(self.demos) if demo.task != broken.task or demo.name in usable]
        gone = [demo for demo in self.demos if demo.task == broken.task and demo.name not in usable]
        new = [Quarantined(demo.file, demo.name, reason) for demo in gone]
        for entry in new:
            log.warning("quarantined %s", entry)
        return replace(
            self,
            demos=tuple(self.demos[i] for i in kept),
            entries=tuple(self.entries[i] for i in kept),
            left_out=(*self.left_out, *new),
        )


def find(settings: Embed, root: Path, suite: str, tasks: Sequence[Task]) -> Source:
    """Return the demonstrations to embed; quarantine or refuse the others, by `embed.on_invalid`.

    Raises:
        DataError: one is damaged and the setting is "stop", or a task is left without any.
    """
    found, left_out = scan(root, suite, tasks, settings.cameras)
    demos: list[Demo] = []
    entries: list[dict[str, Any]] = []
    order = {task: k for k, task in enumerate(tasks)}
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
    return Source(suite, tuple(tasks), tuple(demos), tuple(entries), tuple(left_out))


def make_encoder(settings: Embed) -> tuple[ClipEncoder, int]:
    """Return the encoder on this process's device, and frames per forward pass."""
    device = pick_device()
    batch_size = settings.batch_size or default_batch_size(settings.encoder.model, device)
    # Resolved here, as for a worker: what is shared is looked up by these very parameters.
    params = replace(settings.encoder, precision=resolve_precision(settings.encoder.precision, device))
    return shared_encoder(params, device, settings.grid, batch_size), batch_size


def identity(
    settings: Embed, suite: str, encoder: ClipEncoder, sim: Mapping[str, Any] | None, frame_size: int
) -> dict[str, Any]:
    """Return what the store's rows depend on besides the demonstrations, and what these look like."""
    return {
        "suite": suite,
        "encoder": encoder.identity,
        "transform": TRANSFORM_ID,
        "obs_shift": settings.obs_shift,
        **views(settings).identity(),
        **({"grid": asdict(settings.grid)} if settings.grid else {}),
        **({"depth": DEPTH_ID} if any(is_depth(camera) for camera in settings.cameras) else {}),
        "sim": sim,  # null: not recorded by this project, so LIBERO's own full rendering
        "frame_size": frame_size,
    }


def plan(settings: Embed, source: Source, encoder: ClipEncoder) -> Plan:
    """Return what the store's bytes depend on.

    Raises:
        DataError: demonstrations that were rendered in different ways or sizes.
    """
    recorded = {file: recorded_with(file) for file in dict.fromkeys(demo.file for demo in source.demos)}
    first, sim = next(iter(recorded.items()))
    if other := next((file for file, value in recorded.items() if value != sim), None):
        raise DataError(
            f"{other} was recorded with {recorded[other]}, {first} with {sim}. One store takes one kind of rendering: "
            "make all demonstrations of the suite in the same way"
        )
    sizes = {demo.frame_size: demo for demo in source.demos}
    if len(sizes) > 1:
        (a, one), (b, other_one) = sorted(sizes.items())[:2]
        raise DataError(
            f"the frames of {one} are {a}x{a}, those of {other_one} {b}x{b}. One store takes one size: make all "
            "demonstrations of the suite in the same way"
        )
    number = {task: k for k, task in enumerate(source.tasks)}
    optional = [name for name in schema.OPTIONAL_WIDTHS if all(name in demo.optional for demo in source.demos)]
    return Plan(
        identity=identity(settings, source.suite, encoder, sim, next(iter(sizes))),
        fields=schema.fields(settings.cameras, settings.views, encoder.dim, optional, encoder.tokens),
        episodes=tuple(
            Episode(
                rows=demo.length - settings.obs_shift,
                task=number[demo.task],
                source=demo.source,
                digest=entry["sha256"],
                payload=demo,
            )
            for demo, entry in zip(source.demos, source.entries, strict=True)
        ),
        instructions=tuple(task.language for task in source.tasks),
        task_ids=tuple(task.id for task in source.tasks),
        shard_rows=settings.shard_rows,
        chunk_rows=settings.chunk_rows,
    )


def views(settings: Embed) -> Views:
    """Return which views of a frame the settings ask for."""
    return Views(settings.views, settings.brightness, settings.contrast)


def make_rows(settings: Embed, fields: Sequence[schema.Field], encoder: ClipEncoder, batch_size: int) -> MakeRows:
    """Return what computes rows on a worker."""
    return MakeRows(
        encoder=replace(settings.encoder, precision=encoder.precision),
        grid=settings.grid,
        identity=encoder.identity,
        read=read,
        fields=tuple(fields),
        views=views(settings),
        obs_shift=settings.obs_shift,
        batch_size=batch_size,
    )


def execution(encoder: ClipEncoder, batch_size: int) -> dict[str, Any]:
    """Return what the last bits of a feature may depend on besides the plan: kept in the ledger, not in the store.

    Threads are not among it: a test shows that their number changes nothing.
    """
    found = versions()
    return {
        "code": code_digest("encode", "embed", "libero/demos/read.py"),
        "batch_size": batch_size,
        "device": encoder.device_name,
        "versions": {name: found[name] for name in ("torch", "open_clip_torch", "numpy", "zarr")},
    }
