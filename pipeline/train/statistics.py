"""One pass over every row before training starts: the normaliser's statistics, and values that are not finite."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Bool, Int
from torch import Tensor

from pipeline.errors import DataError
from pipeline.policy.normaliser import Moments
from pipeline.train.data import Table

SHOWN = 5
CHUNK = 8192  # rows at a time, fewer of patch tokens:
CHUNK_NUMBERS = CHUNK * 768


@dataclass(frozen=True)
class Statistics:
    """Of the training rows: features by camera, inputs by name, actions, and keyframes, if the table has them."""

    images: dict[str, Moments]
    proprio: dict[str, Moments]
    action: Moments
    keyframes: Moments | None


def measure_once(accelerator: Accelerator, table: Table, train_rows: Int[Tensor, " N"]) -> Statistics:
    """Return `measure`'s statistics, or raise its error, on every process; the main one alone reads the rows."""
    found: list[Statistics | DataError | None] = [None]
    if accelerator.is_main_process:
        try:
            found = [measure(table, train_rows)]
        except DataError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], DataError):
        raise found[0]
    assert isinstance(found[0], Statistics)
    return found[0]


def measure(table: Table, train_rows: Int[Tensor, " N"]) -> Statistics:
    """Return the statistics of `train_rows`. The features of all rows are read once, in the order they lie in.

    Raises:
        DataError: a feature, an input or an action of any row is not finite; it names the episodes.
    """
    training = torch.zeros(len(table), dtype=torch.bool)
    training[train_rows] = True
    images: dict[str, Moments] = {}
    bad: dict[str, None] = {}
    numbers = max(x.numel() for x in table.images.at(torch.zeros(1, dtype=torch.int64)).values())
    for rows in torch.arange(len(table)).split(max(1, min(CHUNK, CHUNK_NUMBERS // numbers))):
        for camera, features in table.images.at(rows).items():
            bad |= dict.fromkeys(_not_finite(table, f"image/{camera}", features, rows))
            if (keep := training[rows]).any():
                images.setdefault(camera, Moments()).add(features[keep].float())
    lowdim = {**table.proprio, "action": table.action}
    if table.keyframes is not None:
        lowdim["keyframes"] = table.keyframes
    for name, values in lowdim.items():
        bad |= dict.fromkeys(_not_finite(table, name, values, torch.arange(len(table))))
    if bad:
        found = list(bad)
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise DataError(
            f"values that are not finite: {'; '.join(found[:SHOWN])}{more}. Check the store "
            "(python -m cache verify STORE) and embed again, or leave these demonstrations out"
        )
    moments = {name: _moments(values, training) for name, values in lowdim.items()}
    action = moments.pop("action")
    keyframes = moments.pop("keyframes", None)
    return Statistics(images, moments, action, keyframes)


def _not_finite(table: Table, name: str, values: Tensor, rows: Tensor) -> list[str]:
    wrong = rows[~torch.isfinite(values).flatten(1).all(1).cpu()]
    return sorted({f"{name} of {table.episode_of(row)}" for row in wrong.tolist()})


def _moments(values: Tensor, training: Bool[Tensor, " N"]) -> Moments:
    moments = Moments()
    for part, keep in zip(values.split(CHUNK), training.split(CHUNK), strict=True):
        if keep.any():
            moments.add(part[keep].float())
    return moments
