"""Settings of stage one."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.ranges import Count, NotNegative, Width


@dataclass(frozen=True)
class Embed:
    """Stage one: frozen CLIP over all frames, once."""

    encoder: EncoderParams
    cameras: Annotated[tuple[str, ...], Field(min_length=1)]
    views: Count  # of each frame; the first is the frame as it is; others, for policy.augmented_views, differ in light
    brightness: NotNegative  # of the other views: factors in [max(0, 1 - x), 1 + x], as in torchvision's ColorJitter
    contrast: NotNegative  # likewise
    grid: GridParams | None  # patch tokens to store beside the pooled features; null: none
    obs_shift: Literal[
        0, 1
    ]  # 1 pairs obs[t-1] with action[t], because LIBERO records obs[t] after action[t]; 0 does not
    batch_size: Width | None  # frames per forward pass; null: 64 on a CPU, what fits on a GPU
    shard_rows: Count  # rows per shard, the unit of write
    chunk_rows: Count  # rows per chunk, the unit of read, where that makes 2 MiB at most; divides shard_rows
    on_invalid: Literal["quarantine", "stop"]  # what a damaged demonstration does to the build
