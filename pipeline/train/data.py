"""Cached features in memory: tensors on the training device, batches by index, no DataLoader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.reader import Store
from pipeline.errors import DataError, did_you_mean
from pipeline.policy.fusion import PROPRIO_DIMS
from pipeline.policy.windows import action_windows


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

    images: dict[str, Float[Tensor, "B D"]]
    text: Float[Tensor, "B Dt"]
    proprio: dict[str, Float[Tensor, "B _"]]
    actions: Float[Tensor, "B H 7"]


@dataclass(frozen=True)
class ResidentData:
    """All rows of one or more stores, on one device."""

    episodes: tuple[Episode, ...]
    images: dict[str, Float[Tensor, "N D"]]  # f16, view 0
    text: Float[Tensor, "K Dt"]
    text_of_row: Int[Tensor, " N"]
    proprio: dict[str, Float[Tensor, "N _"]]
    action: Float[Tensor, "N 7"]
    last: Int[Tensor, " N"]  # last row of each row's episode

    def __len__(self) -> int:
        return len(self.action)

    def episode_of(self, row: int) -> str:
        """Return suite and source of the episode that a row belongs to."""
        episode = next(e for e in self.episodes if e.first <= row < e.first + e.length)
        return f"{episode.suite}/{episode.source}"

    def batch(self, rows: Int[Tensor, " B"], horizon: int) -> Batch:
        """Gather the rows with their action windows (B, H, 7). Features stay f16; the normaliser widens them."""
        return Batch(
            images={name: x[rows] for name, x in self.images.items()},
            text=self.text[self.text_of_row[rows]],
            proprio={name: x[rows] for name, x in self.proprio.items()},
            actions=action_windows(self.action, self.last, rows, horizon),
        )

    def to(self, device: torch.device) -> "ResidentData":
        """Return the same data with its tensors on `device`."""
        return replace(
            self,
            images={k: v.to(device) for k, v in self.images.items()},
            text=self.text.to(device),
            text_of_row=self.text_of_row.to(device),
            proprio={k: v.to(device) for k, v in self.proprio.items()},
            action=self.action.to(device),
            last=self.last.to(device),
        )


def load_stores(
    stores: Sequence[tuple[str, Store, Sequence[int] | None]],
    cameras: Sequence[str],
    proprio: Sequence[str],
    action: str,
) -> ResidentData:
    """Read stores into one table.

    Args:
        stores: (suite, store, ids of the tasks to use or None for all).
        cameras: cameras to read.
        proprio: low-dimensional inputs to read, keys of PROPRIO_DIMS.
        action: array to learn from, "action" or "expert_action".

    Raises:
        DataError: a store lacks a camera, an array or a task, or the stores' features are of different encoders.
    """
    parts = [_load_store(suite, store, tasks, cameras, proprio, action) for suite, store, tasks in stores]
    first_suite, first, _ = stores[0]
    for suite, store, _ in stores:
        for what in ("encoder", "transform", "sim"):
            if store.identity[what] != first.identity[what]:
                raise DataError(
                    f"the stores of {first_suite} and {suite} differ in {what}: {first.identity[what]} and "
                    f"{store.identity[what]}. Make both in the same way: dvc repro embed"
                )
    return _concatenate(parts)


def _load_store(
    suite: str, store: Store, tasks: Sequence[int] | None, cameras: Sequence[str], proprio: Sequence[str], action: str
) -> ResidentData:
    for camera in cameras:
        if camera not in store.cameras:
            raise DataError(
                f"{store.location}: has no camera {camera!r}.{did_you_mean(camera, store.cameras)} "
                "Add it to embed.cameras and embed again."
            )
    if f"lowdim/{action}" not in store.fields:
        raise DataError(
            f"{store.location}: has no lowdim/{action}, which train_flow.action asks for. Only scripted "
            "demonstrations have expert_action: use train_flow.action=action"
        )
    task_ids = store.texts.task_ids[store.episodes.task]
    wanted = [i for i, task in enumerate(task_ids) if tasks is None or int(task) in tasks]
    missing = set(tasks or ()) - {int(task) for task in task_ids}
    if missing or not wanted:
        raise DataError(
            f"{store.location}: has no episode of task {sorted(missing)} of {suite}. Run: dvc repro demos embed"
        )
    rows = np.concatenate([_rows(store, i) for i in wanted])
    episodes, first = [], 0
    for i in wanted:
        length = int(store.episodes.length[i])
        episodes.append(Episode(suite, int(task_ids[i]), store.episodes.source[i], first, length))
        first += length

    def take(name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(store.read(name)[rows]))

    lengths = torch.tensor([e.length for e in episodes])
    ends = torch.tensor([e.first + e.length - 1 for e in episodes])
    texts = torch.from_numpy(store.episodes.task[wanted])
    return ResidentData(
        episodes=tuple(episodes),
        images={c: take(f"image/{c}")[:, 0].contiguous() for c in cameras},
        text=torch.from_numpy(np.asarray(store.texts.embedding, np.float32)),
        text_of_row=torch.repeat_interleave(texts, lengths),
        proprio={name: take(f"lowdim/{name}") for name in proprio if name in PROPRIO_DIMS},
        action=take(f"lowdim/{action}"),
        last=torch.repeat_interleave(ends, lengths),
    )


def _rows(store: Store, episode: int) -> np.ndarray:
    start = int(store.episodes.start[episode])
    return np.arange(start, start + int(store.episodes.length[episode]))


def _concatenate(parts: Sequence[ResidentData]) -> ResidentData:
    episodes: list[Episode] = []
    last, text_of_row = [], []
    rows = texts = 0
    for part in parts:
        episodes += [replace(e, first=e.first + rows) for e in part.episodes]
        last.append(part.last + rows)
        text_of_row.append(part.text_of_row + texts)
        rows += len(part)
        texts += len(part.text)
    return ResidentData(
        episodes=tuple(episodes),
        images={c: torch.cat([p.images[c] for p in parts]) for c in parts[0].images},
        text=torch.cat([p.text for p in parts]),
        text_of_row=torch.cat(text_of_row),
        proprio={n: torch.cat([p.proprio[n] for p in parts]) for n in parts[0].proprio},
        action=torch.cat([p.action for p in parts]),
        last=torch.cat(last),
    )


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
