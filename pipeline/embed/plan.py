"""What a store is made of: which demonstrations, in which order, encoded how."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cache import schema
from cache.plan import Plan
from cache.units import Episode
from pipeline.data import own
from pipeline.data.demos import Demo, Task, digest, scan
from pipeline.embed.settings import Embed
from pipeline.embed.worker import shared_encoder, views
from pipeline.encode.clip import ClipEncoder, default_batch_size, pick_device, resolve_precision
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.errors import DataError
from pipeline.libero.demos.layout import GUIDE
from pipeline.libero.demos.read import Quarantined, recorded_with
from pipeline.libero.depth import DEPTH_ID, is_depth
from pipeline.libero.installation import official_picture_identity
from pipeline.provenance import code_digest, versions

log = logging.getLogger(__name__)
READING = ("conventions", "depth", "proprio", "demos/layout", "demos/read")  # modules that rows go through


@dataclass(frozen=True)
class Source:
    """Usable demonstrations, and the digest of each.

    All tasks' first demonstrations come first, then all tasks' second ones, and so on: those that are recorded later
    go to the end of the store, and the shards before them stay as they are.
    """

    suite: str
    tasks: tuple[Task, ...]
    demos: tuple[Demo, ...]
    digests: tuple[str, ...]
    left_out: tuple[Quarantined, ...]

    def __post_init__(self) -> None:
        for task in self.tasks:
            if not any(demo.task == task for demo in self.demos):
                raise DataError(
                    f"{self.suite} task {task.id} ({task.name}) has no usable demonstration"
                    f"{f'; the first problem is {self.left_out[0]}' if self.left_out else ''}. "
                    f"Make them: python -m stages.demos. {GUIDE}"
                )

    def without(self, broken: Demo, reason: str, root: Path, cameras: Sequence[str]) -> "Source":
        """Leave out a demonstration that could not be read, and those of its file that cannot be opened any more.

        Raises:
            DataError: the file is gone, or its task has no usable demonstration left.
        """
        usable = {demo.source for demo in scan(root, self.suite, [broken.task], cameras)[0]} - {broken.source}
        kept = [i for i, demo in enumerate(self.demos) if demo.task != broken.task or demo.source in usable]
        gone = [demo for demo in self.demos if demo.task == broken.task and demo.source not in usable]
        new = [Quarantined(demo.file, demo.name, reason) for demo in gone]
        for entry in new:
            log.warning("quarantined %s", entry)
        return replace(
            self,
            demos=tuple(self.demos[i] for i in kept),
            digests=tuple(self.digests[i] for i in kept),
            left_out=(*self.left_out, *new),
        )


def find(settings: Embed, root: Path, tasks: Sequence[Task]) -> Source:
    """Return the demonstrations to embed; quarantine or refuse the others, by `embed.on_invalid`.

    Raises:
        DataError: one is damaged and the setting is "stop", or a task is left without any.
    """
    suite = tasks[0].suite
    found, left_out = scan(root, suite, tasks, settings.cameras)
    demos: list[Demo] = []
    digests: list[str] = []
    order = {task: k for k, task in enumerate(tasks)}
    for demo in sorted(found, key=lambda demo: (demo.number, order[demo.task])):
        try:
            if demo.length <= settings.obs_shift:
                raise DataError(f"{demo.length} steps are too few for obs_shift {settings.obs_shift}")
            digests.append(digest(demo))
            demos.append(demo)
        except DataError as error:
            left_out.append(Quarantined(demo.file, demo.name, str(error)))
            log.warning("quarantined %s", left_out[-1])
    if left_out and settings.on_invalid == "stop":
        raise DataError(
            f"{len(left_out)} damaged demonstrations, first {left_out[0]}. "
            "Make or download them again, or set embed.on_invalid: quarantine to leave them out"
        )
    return Source(suite, tuple(tasks), tuple(demos), tuple(digests), tuple(left_out))


def load_encoder(settings: Embed) -> tuple[Embed, ClipEncoder]:
    """Return the encoder on this process's device, and the settings with what was left to the device decided.

    That is the precision and the frames per forward pass: workers must not choose.
    """
    device = pick_device()
    encoder = replace(settings.encoder, precision=resolve_precision(settings.encoder.precision, device))
    batch_size = min(
        settings.batch_size or default_batch_size(encoder.model, device, settings.shard_rows), settings.shard_rows
    )
    settings = replace(settings, encoder=encoder, batch_size=batch_size)
    return settings, shared_encoder(encoder, device, settings.grid, batch_size)


def identity(settings: Embed, suite: str, encoder: ClipEncoder, made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the store's rows depend on besides the demonstrations, and how these were made (`recorded`)."""
    return {
        "suite": suite,
        "encoder": encoder.identity,
        "transform": TRANSFORM_ID,
        "obs_shift": settings.obs_shift,
        **views(settings).identity(),
        **({"grid": asdict(settings.grid)} if settings.grid else {}),
        **({"depth": DEPTH_ID} if any(is_depth(camera) for camera in settings.cameras) else {}),
        **made,
    }


def recorded(settings: Embed, demos: Sequence[Demo]) -> dict[str, Any]:
    """Return how the demonstrations were made: `sim`, and of data of your own `own`.

    `sim` decided how the scenes look (`installation.picture_identity`), alike in all demonstrations; None if no
    simulator of ours drew them. Files that do not tell are taken for LIBERO's own.

    Raises:
        DataError: they differ in rendering or size, or were not recorded in the order that `embed.obs_shift` says.
    """
    mine = [demo for demo in demos if isinstance(demo, own.Demo)]
    if mine:
        return {"sim": None, "own": own.identity(mine)}
    sizes = {demo.frame_size: demo for demo in demos}
    if len(sizes) > 1:
        (a, one), (b, other) = sorted(sizes.items())[:2]
        raise DataError(
            f"the frames of {one} are {a}x{a}, those of {other} {b}x{b}. One store takes one size: make all "
            "demonstrations of the suite in the same way"
        )
    official = official_picture_identity(next(iter(sizes)))
    found = {file: recorded_with(file) or official for file in dict.fromkeys(demo.file for demo in demos)}
    pictures = {file: {name: sim.get(name) for name in official} for file, sim in found.items()}
    first, sim = next(iter(pictures.items()))
    if differing := next((file for file, value in pictures.items() if value != sim), None):
        raise DataError(
            f"{differing} was recorded with {pictures[differing]}, {first} with {sim}. One store takes one kind of "
            "rendering: make all demonstrations of the suite in the same way"
        )
    check_order(settings.obs_shift, demos)
    return {"sim": sim}


def check_order(obs_shift: int, demos: Sequence[Demo]) -> None:
    """Raise DataError if observations were not recorded as `embed.obs_shift` says, as far as files tell."""
    after, before = (next((demo for demo in demos if demo.obs_shift == shift), None) for shift in (1, 0))
    if after and before:
        raise DataError(
            f"the observations of {after} were recorded after their actions, those of {before} before. One store takes "
            "one order: keep the two kinds in directories of their own, or record one of them anew"
        )
    wrong = before if obs_shift else after
    if wrong:
        raise DataError(
            f"{wrong}: its observations were recorded {'before' if obs_shift else 'after'} their actions, by its joint "
            f"angles and simulator states; embed.obs_shift: {obs_shift} would pair them wrongly. "
            f"Set embed.obs_shift: {wrong.obs_shift}"
        )


def plan(settings: Embed, source: Source, encoder: ClipEncoder) -> Plan:
    """Return what the store's bytes depend on.

    Raises:
        DataError: see `recorded`.
    """
    number = {task: k for k, task in enumerate(source.tasks)}
    mine = next((demo.widths for demo in source.demos if isinstance(demo, own.Demo)), None)
    theirs = [demo.optional for demo in source.demos if not isinstance(demo, own.Demo)]
    optional = [name for name in schema.OPTIONAL_WIDTHS if all(name in has for has in theirs)]
    return Plan(
        identity=identity(settings, source.suite, encoder, recorded(settings, source.demos)),
        fields=schema.fields(settings.cameras, settings.views, encoder.dim, optional, encoder.tokens, mine),
        episodes=tuple(
            Episode(
                rows=demo.length - settings.obs_shift,
                task=number[demo.task],
                source=demo.source,
                digest=sha256,
                payload=demo,
            )
            for demo, sha256 in zip(source.demos, source.digests, strict=True)
        ),
        instructions=tuple(task.language for task in source.tasks),
        task_ids=tuple(task.id for task in source.tasks),
        shard_rows=settings.shard_rows,
        chunk_rows=settings.chunk_rows,
    )


def execution(settings: Embed, encoder: ClipEncoder) -> dict[str, Any]:
    """Return what the last bits of a feature may depend on besides the plan: kept in the ledger, not in the store.

    Threads are not among it: a test shows that their number changes nothing.
    """
    found = versions()
    return {
        "code": code_digest("encode", "embed", "data", *(f"libero/{name}.py" for name in READING)),
        "batch_size": settings.batch_size,
        "device": encoder.device_name,
        "versions": {name: found[name] for name in ("torch", "open_clip_torch", "numpy", "zarr")},
    }
