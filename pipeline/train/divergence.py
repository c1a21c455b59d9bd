"""Keep values that are not finite out of a training, and say which episodes they came from."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.errors import DataError, PipelineError
from pipeline.train.data import ResidentData

SHOWN = 5
LOOK_EVERY = 50
"""Steps between two looks on a GPU, where each one waits for all work under way. On a CPU every step is looked at."""


class LossWatch:
    """Notes, on the device, the first step whose loss is not finite."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), -1, dtype=torch.int64, device=device)
        self._every = 1 if device.type == "cpu" else LOOK_EVERY

    def add(self, loss: Float[Tensor, ""], step: int) -> None:
        """Note the loss of a step."""
        new = (self._first < 0) & ~torch.isfinite(loss)
        self._first = torch.where(new, torch.full_like(self._first, step), self._first)

    def due(self, step: int) -> bool:
        """Return whether it is time to look."""
        return step % self._every == 0

    def first(self) -> int | None:
        """Return the first bad step, None without one. Waits for the device."""
        step = int(self._first)
        return None if step < 0 else step


def divergence(data: ResidentData, rows: Int[Tensor, " B"], step: int, epoch: int) -> PipelineError:
    """Return the error for a loss that was not finite at `step`, on the batch `rows`, whose inputs were."""
    sources = sorted({data.episode_of(row) for row in rows.tolist()})
    return PipelineError(
        f"the loss is not finite at step {step} (epoch {epoch}): the network diverged, on rows of "
        f"{', '.join(sources[:SHOWN])}{_more(len(sources))}. Lower train_flow.learning_rate or train_flow.clip_norm"
    )


def refuse_nonfinite(data: ResidentData) -> None:
    """Raise DataError if a feature, an input or an action is not finite; it names the episodes."""
    parts = {**{f"image/{k}": v for k, v in data.images.items()}, **data.proprio, "action": data.action}
    found = []
    for name, values in parts.items():
        rows = (~torch.isfinite(values).all(1)).nonzero().flatten().tolist()
        found += sorted({f"{name} of {data.episode_of(row)}" for row in rows})
    if found:
        raise DataError(
            f"values that are not finite: {'; '.join(found[:SHOWN])}{_more(len(found))}. Check the store "
            "(python -m cache verify STORE) and embed again, or leave these demonstrations out"
        )


def _more(count: int) -> str:
    return f" and {count - SHOWN} more" if count > SHOWN else ""
