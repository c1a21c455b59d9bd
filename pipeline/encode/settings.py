"""Settings of the frozen encoder."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.ranges import Count, Seed

SEEDED = "seeded"


@dataclass(frozen=True)
class EncoderParams:
    """A frozen CLIP from open_clip."""

    model: str  # open_clip model name
    pretrained: str  # open_clip tag, "libero", path of a local checkpoint, or "seeded": random weights from `seed`
    seed: Seed
    precision: Literal["auto", "fp32", "bf16"]

    @property
    def identity(self) -> dict[str, Any]:
        """What of `ClipEncoder.identity` is known before any weights are read. Holds no path."""
        known: dict[str, Any] = {
            "model": self.model,
            "pretrained": self.pretrained.replace("\\", "/").rsplit("/", 1)[-1],
            "seed": self.seed if self.pretrained == SEEDED else None,
        }
        return known if self.precision == "auto" else known | {"precision": self.precision}


@dataclass(frozen=True)
class GridParams:
    """Patch tokens of a vision transformer, averaged over squares of patches."""

    size: Count  # k x k tokens are kept; divides the number of patches along a side
    # -1: as the last block gives them, before pooling and its norm; -2: as the block before does, ...
    layer: Annotated[int, Field(lt=0)]


def grid_misfit(size: int, model: str, side: int) -> str | None:
    """Return what is wrong with a grid of `size` on a model that has `side` patches along a side; None if it fits."""
    if size >= 1 and side % size == 0:
        return None
    fits = " or ".join(str(k) for k in range(1, side + 1) if side % k == 0)
    return f"embed.grid.size is {size}, but {model} has {side} x {side} patches: use {fits}"
