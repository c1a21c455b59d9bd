"""The table that a policy is trained on: cached features of the episodes of one or more stores.

Low-dimensional arrays (some 100 bytes a row) are held in memory, image features too if they fit, or they are streamed.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.reader import Store
from pipeline.errors import DataError, did_you_mean
from pipeline.policy.settings import PolicyParams
from pipeline.policy.windows import action_windows, next_changes, past_rows
from pipeline.train.images import (
    MIB,
    Drawn,
    Features,
    Images,
    ResidentImages,
    Span,
    StreamedImages,
    feature_shape,
    pick,
    read_views,
)

log = logging.getLogger(__name__)
Mode = Literal["auto", "resident", "streaming"]


@dataclass(frozen=True)
class Episode:
    """Rows first ... first + length - 1 of the table, all of one task."""

    suite: str
    task: int
    source: str
    first: int
    length: int


@dataclass(frozen=True)
class Batch:
    """One batch of training rows."""

    images: Features
    text: Float[Tensor, "B Dt"]
    proprio: dict[str, Float[Tensor, "B *time"]]
    actions: Float[Tensor, "B H A"]
    keyframes: Float[Tensor, "B 6"] | None = None


@dataclass(frozen=True)
class Selection:
    """Which part of a store belongs to the table: `episodes` are their numbers in the store, ascending."""

    suite: str
    store: Store
    episodes: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """All rows: episode after episode, store after store."""

    episodes: tuple[Episode, ...]
    images: Images
    text: Float[Tensor, "K Dt"]
    text_of_row: Int[Tensor, " N"]
    proprio: dict[str, Float[Tensor, "N _"]]
    action: Float[Tensor, "N A"]
    last: Int[Tensor, " N"]  # last row of each row's episode
    past: Int[Tensor, "N L"] | None = None  # rows that a policy with a history sees at each row, oldest first
    keyframes: Float[Tensor, "N 6"] | None = None  # where the hand is when the gripper next changes, and after that

    def __len__(self) -> int:
        return len(self.action)

    def episode_of(self, row: int) -> str:
        """Return suite and source of the episode that a row belongs to."""
        episode = next(e for e in self.episodes if e.first <= row < e.first + e.length)
        return f"{episode.suite}/{episode.source}"

    def tasks(self) -> Int[Tensor, " N"]:
        """Return a number for each row that tells the tasks, of all suites, apart."""
        numbers: dict[tuple[str, int], int] = {}
        of_episode = [numbers.setdefault((e.suite, e.task), len(numbers)) for e in self.episodes]
        return torch.tensor(of_episode).repeat_interleave(torch.tensor([e.length for e in self.episodes]))

    def batch(
        self, rows: Int[Tensor, " B"], horizon: int, images: Features | None = None, drawn: Drawn | None = None
    ) -> Batch:
        """Gather the rows with their action windows (B, H, A) on the table's device.

        Features stay f16; the normaliser widens them.

        Args:
            images: features of the rows, of all views if there are several, if they were read already.
            drawn: the view to take of each row; None takes the frames as they are, or `images`.
        """
        device = self.action.device
        rows = rows.to(device)
        seen = rows if self.past is None else self.past[rows]
        if images is None:
            images = self.images.at(seen, drawn)
        elif drawn is not None:
            images = pick(images, drawn)
        return Batch(
            images={name: x.to(device) for name, x in images.items()},
            text=self.text[self.text_of_row[rows]],
            proprio={name: x[seen] for name, x in self.proprio.items()},
            actions=action_windows(self.action, self.last, rows, horizon),
            keyframes=None if self.keyframes is None else self.keyframes[rows],
        )

    def to(self, device: torch.device) -> "Table":
        """Return the same table with what it holds in memory on `device`."""
        return replace(
            self,
            images=self.images.to(device),
            text=self.text.to(device),
            text_of_row=self.text_of_row.to(device),
            proprio={k: v.to(device) for k, v in self.proprio.items()},
            action=self.action.to(device),
            last=self.last.to(device),
            past=None if self.past is None else self.past.to(device),
            keyframes=None if self.keyframes is None else self.keyframes.to(device),
        )


@dataclass(frozen=True)
class FeatureSpec:
    """What of each row is read: what a policy is given, and what it learns from beside actions.

    Attributes:
        cameras: cameras to read.
        kind: "image", their pooled features, or "grid", their patch tokens.
        proprio: low-dimensional inputs to read.
        n_obs_steps: observations at a time, `stride` rows apart.
        keyframes: where the hand will be at its next two keyframes, to learn from.
        augmented: all views of a frame, to draw one each time it is shown, and not only the frame as it is.
    """

    cameras: Sequence[str]
    proprio: Sequence[str]
    kind: Literal["image", "grid"] = "image"
    n_obs_steps: int = 1
    stride: int = 1
    keyframes: bool = False
    augmented: bool = False

    @classmethod
    def by(cls, policy: PolicyParams, keyframes: bool = False) -> "FeatureSpec":
        """Return what the policy section asks for, and keyframes if training does."""
        kind: Literal["image", "grid"] = "grid" if policy.features == "grid" else "image"
        return cls(
            policy.cameras,
            policy.proprio,
            kind,
            n_obs_steps=policy.n_obs_steps,
            stride=policy.n_action_steps,
            keyframes=keyframes,
            augmented=policy.augmented_views,
        )

    @property
    def names(self) -> dict[str, str]:
        """Camera -> array of its features."""
        return {camera: f"{self.kind}/{camera}" for camera in self.cameras}


def load_stores(
    stores: Sequence[tuple[str, Store, Sequence[int] | None]],
    wanted: FeatureSpec,
    action: str,
    mode: Mode = "auto",
    memory_mib: int = 4096,
) -> Table:
    """Read stores into one table.

    Args:
        stores: (suite, store, ids of the tasks to use or None for all).
        wanted: what of each row to read.
        action: array to learn from, "action" or "expert_action".
        mode: image features in memory, or streamed; auto: in memory if they take no more than `memory_mib`.
        memory_mib: bound on streamed image features.

    Raises:
        DataError: a store lacks a camera, an array or a task, the stores' features are of different encoders, or a
            history is asked for of images that do not fit into memory.
    """
    selected = [_select(suite, store, tasks, wanted, action) for suite, store, tasks in stores]
    _require_alike(selected, ("views", "augment") if wanted.augmented else ())
    episodes, spans = _index(selected)
    rows = sum(episode.length for episode in episodes)
    lengths = torch.tensor([e.length for e in episodes])
    starts = torch.tensor([e.first for e in episodes]).repeat_interleave(lengths)
    seen = past_rows(starts, wanted.n_obs_steps, wanted.stride) if wanted.n_obs_steps > 1 else None
    last = torch.tensor([e.first + e.length - 1 for e in episodes]).repeat_interleave(lengths)
    actions = _lowdim(selected, action)
    keyframes = None
    if wanted.keyframes:
        keyframes = _lowdim(selected, "ee_pose")[next_changes(actions[:, -1], last), :3].flatten(1)
    texts_before = np.cumsum([0, *(len(s.store.texts.embedding) for s in selected)])
    text_of = [int(texts_before[k] + s.store.episodes.task[i]) for k, s in enumerate(selected) for i in s.episodes]
    return Table(
        episodes=episodes,
        images=_images(selected, spans, rows, wanted, mode, memory_mib),
        text=torch.cat([torch.from_numpy(np.asarray(s.store.texts.embedding, np.float32)) for s in selected]),
        text_of_row=torch.tensor(text_of).repeat_interleave(lengths),
        proprio={name: _lowdim(selected, name) for name in wanted.proprio},
        action=actions,
        last=last,
        past=seen,
        keyframes=keyframes,
    )


def _select(suite: str, store: Store, tasks: Sequence[int] | None, wanted: FeatureSpec, action: str) -> Selection:
    for camera in wanted.cameras:
        if camera not in store.cameras:
            raise DataError(
                f"{store.location}: has no camera {camera!r}.{did_you_mean(camera, store.cameras)} "
                "Add it to embed.cameras and embed again."
            )
    if wanted.kind == "grid" and store.identity.get("grid") is None:
        raise DataError(
            f"{store.location}: has no patch tokens, which policy.features grid takes. Set embed.grid and embed again"
        )
    if wanted.augmented and store.identity.get("views", 1) == 1:
        raise DataError(
            f"{store.location}: has one view of each frame, and policy.augmented_views draws from several. Set "
            "embed.views to 2 or more and embed again, or policy.augmented_views to false"
        )
    if f"lowdim/{action}" not in store.fields:
        raise DataError(
            f"{store.location}: has no lowdim/{action}, which train_flow.action asks for. Only scripted "
            "demonstrations have expert_action: use train_flow.action=action"
        )
    if wanted.keyframes and "lowdim/ee_pose" not in store.fields:
        raise DataError(
            f"{store.location}: has no lowdim/ee_pose, which train_flow.keyframe_weight takes the hand's place from. "
            "Set it to 0"
        )
    for name in wanted.proprio:
        if f"lowdim/{name}" not in store.fields:
            raise DataError(
                f"{store.location}: has no lowdim/{name}, which policy.proprio asks for: not all of its demonstrations "
                "have it. Record them anew (scripted ones do), or take it out of policy.proprio"
            )
    task_ids = store.texts.task_ids[store.episodes.task]
    chosen = [i for i, task in enumerate(task_ids) if tasks is None or int(task) in tasks]
    missing = set(tasks or ()) - {int(task) for task in task_ids}
    if missing or not chosen:
        raise DataError(
            f"{store.location}: has no episode of task {sorted(missing)} of {suite}. Run: dvc repro demos embed"
        )
    return Selection(suite, store, tuple(chosen))


def _require_alike(selected: Sequence[Selection], also: Sequence[str]) -> None:
    first = selected[0]
    for other in selected[1:]:
        for what in ("encoder", "transform", "sim", "own", "grid", "depth", *also):
            theirs, ours = (part.store.identity.get(what) for part in (other, first))
            if theirs != ours:
                raise DataError(
                    f"the stores of {first.suite} and {other.suite} differ in {what}: {ours} and {theirs}. "
                    "Make both in the same way: dvc repro embed"
                )


def _index(selected: Sequence[Selection]) -> tuple[tuple[Episode, ...], list[Span]]:
    """Return the table's episodes, and where their rows lie in the stores."""
    episodes, spans, first = [], [], 0
    for number, part in enumerate(selected):
        index, texts = part.store.episodes, part.store.texts
        for i in part.episodes:
            length, task = int(index.length[i]), int(texts.task_ids[index.task[i]])
            episodes.append(Episode(part.suite, task, index.source[i], first, length))
            spans.append(Span(number, int(index.start[i]), first, length))
            first += length
    return tuple(episodes), spans


def _images(
    selected: Sequence[Selection],
    spans: Sequence[Span],
    rows: int,
    wanted: FeatureSpec,
    mode: Mode,
    memory_mib: int,
) -> Images:
    stores = [part.store for part in selected]
    shapes = {camera: feature_shape(stores[0], name) for camera, name in wanted.names.items()}
    views = stores[0].layout(next(iter(wanted.names.values()))).row_shape[0] if wanted.augmented else 1
    size = rows * views * sum(math.prod(shape) for shape in shapes.values()) * 2 / MIB
    resident = mode == "resident" or (mode == "auto" and size <= memory_mib)
    log.info(
        "%d rows, %.0f MiB of image features: %s (train_flow.data_mode %s, memory_mib %d)",
        rows,
        size,
        "held in memory" if resident else "streamed",
        mode,
        memory_mib,
    )
    if not resident:
        if wanted.n_obs_steps > 1:
            raise DataError(
                f"policy.n_obs_steps is {wanted.n_obs_steps}, which needs all features in memory: set "
                f"train_flow.data_mode: resident, or train_flow.memory_mib above {size:.0f}"
            )
        episodes = [part.episodes for part in selected]
        return StreamedImages(stores, spans, episodes, wanted.names, memory_mib * MIB, views)
    features = {camera: torch.empty(rows, views, *shape, dtype=torch.float16) for camera, shape in shapes.items()}
    for run in _joined(spans):
        for camera, out in features.items():
            part = out[run.first : run.first + run.length]
            read_views(stores[run.store], wanted.names[camera], run.start, run.start + run.length, part)
    return ResidentImages(features if views > 1 else {camera: x[:, 0] for camera, x in features.items()}, views)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Return the spans with those that follow each other in their store made one."""
    joined: list[Span] = []
    for span in spans:
        before = joined[-1] if joined else None
        if before and before.store == span.store and before.start + before.length == span.start:
            joined[-1] = replace(before, length=before.length + span.length)
        else:
            joined.append(span)
    return joined


def _lowdim(selected: Sequence[Selection], name: str) -> Tensor:
    parts = []
    for part in selected:
        index = part.store.episodes
        rows = [np.arange(index.start[i], index.start[i] + index.length[i]) for i in part.episodes]
        parts.append(torch.from_numpy(part.store.read(f"lowdim/{name}")[np.concatenate(rows)]))
    return torch.cat(parts)


def split_by_episode(
    episodes: Sequence[Episode], val_fraction: float, seed: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " M"]]:
    """Return the rows of the training and of the validation episodes, ascending.

    Of each task with two or more episodes, round(val_fraction * n), and at least one if the fraction is positive, is
    held out; the choice depends on the seed and the task alone.
    """
    held: set[int] = set()
    by_task: dict[tuple[str, int], list[int]] = {}
    for i, episode in enumerate(episodes):
        by_task.setdefault((episode.suite, episode.task), []).append(i)
    for (suite, task), members in by_task.items():
        if val_fraction > 0 and len(members) > 1:
            count = min(max(1, round(val_fraction * len(members))), len(members) - 1)
            rng = np.random.default_rng([seed, task, *suite.encode()])
            held.update(int(i) for i in rng.permutation(members)[:count])

    def rows(keep: bool) -> Tensor:
        chosen = [torch.arange(e.first, e.first + e.length) for i, e in enumerate(episodes) if (i in held) == keep]
        return torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)

    return rows(False), rows(True)
