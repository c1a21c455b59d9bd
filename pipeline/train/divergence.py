"""A loss that is not finite stops a training at once, and names the episodes of its batch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.train.data import Table

SHOWN = 5
CHECK_EVERY = 50
"""Steps between two checks on a GPU, where each one waits for all work under way. On a CPU every step is checked."""


class LossWatch:
    """Notes, on the device, the first step whose loss is not finite."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), -1, dtype=torch.int64, device=device)
        self._every = 1 if device.type == "cpu" else CHECK_EVERY

    def add(self, loss: Float[Tensor, ""], step: int) -> None:
        """Note the loss of a step."""
        new = (self._first < 0) & ~torch.isfinite(loss)
        self._first = torch.where(new, torch.full_like(self._first, step), self._first)

    def due(self, step: int) -> bool:
        """Return whether it is time to check."""
        return step % self._every == 0

    def first(self) -> int | None:
        """Return the first bad step, None without one. Waits for the device."""
        step = int(self._first)
        return None if step < 0 else step


def divergence(table: Table, rows: Int[Tensor, " B"], step: int, epoch: int) -> PipelineError:
    """Return the error for a loss that was not finite at `step`, on the batch `rows`, whose inputs were."""
    sources = sorted({table.episode_of(row) for row in rows.tolist()})
    more = f" and {len(sources) - SHOWN} more" if len(sources) > SHOWN else ""
    return PipelineError(
        f"the loss is not finite at step {step} (epoch {epoch}): the network diverged, on rows of "
        f"{', '.join(sources[:SHOWN])}{more}. Lower train_flow.learning_rate or train_flow.clip_norm"
    )
