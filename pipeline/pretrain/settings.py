"""Settings of the training of the project's own CLIP."""

from dataclasses import dataclass
from typing import Literal

from pipeline.ranges import Count, Natural, Positive, Seed


@dataclass(frozen=True)
class PretrainParams:
    """Contrastive training on pictures of scenes, with positions told beside."""

    pretrained: str | None  # a directory as this stage writes it, whose weights are begun with; null: random ones
    lock_image: bool  # the image tower stays as it is, and the text tower alone learns (LiT, Zhai et al. 2022)
    steps: Count
    batch_size: Count  # pictures, over all processes; each is compared with the sentences of its own process
    learning_rate: Positive
    weight_decay: Positive
    warmup_steps: Natural
    ema_decay: Positive  # of the average of weights that is kept
    precision: Literal["fp32", "bf16"]
    evaluate_every: Count  # steps; a checkpoint goes with it
    seed: Seed
