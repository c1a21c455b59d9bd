"""Settings of stage two."""

from dataclasses import dataclass
from typing import Literal

from pipeline.ranges import Count, Natural, NotNegative, Positive, Seed, ShareBelowOne, Width

TRACKERS = ("tensorboard", "dvclive")  # of curves, by Accelerate


@dataclass(frozen=True)
class TuneEncoder:
    """Whether training goes through CLIP's image tower, from raw frames."""

    tune: Literal["none", "lora", "full"]  # none: on cached features
    learning_rate: NotNegative  # of what is tuned of the tower
    lora_rank: Width  # of the update of each matrix; its scale alpha is twice that
    gradient_checkpointing: bool  # less memory for activations, more time


@dataclass(frozen=True)
class TrainFlow:
    """Stage two: fusion and flow on cached features."""

    action: Literal["action", "expert_action"]  # the label: as executed, or the scripted expert's, free of noise
    teacher: str | None  # bundle of a trained flow, whose samples are learnt instead of the demonstrations (reflow)
    teacher_steps: Count | None  # in which it is sampled; null: as it was trained for
    keyframe_weight: (
        NotNegative  # of the auxiliary loss: where the gripper next closes or opens, and after that; 0: none
    )
    epochs: Count
    batch_size: Width  # global, over all processes
    microbatch_size: Width | None  # per process and forward pass; null: batch_size / processes; accumulation is derived
    learning_rate: Positive
    weight_decay: NotNegative
    warmup_steps: Natural
    clip_norm: Positive
    ema_decay: ShareBelowOne  # 0 turns the average off
    val_fraction: ShareBelowOne  # of episodes
    metrics_every_epochs: Count  # action MSE and MAE, by sampling; the losses are tracked every epoch
    metrics_rows: Count  # rows of each split that action MSE and MAE are sampled on
    checkpoint_every_epochs: Count
    precision: Literal["no", "bf16", "fp16"]
    cuda_graph: bool  # each full batch as one CUDA graph; one GPU, features held in memory
    data_mode: Literal["auto", "resident", "streaming"]  # image features in memory or streamed; auto: by their size
    memory_mib: Count  # most that image features may take: auto streams beyond it, and streaming keeps to it
    balance: Literal["none", "task"]  # every row once an epoch, or every task equally often
    held_out_tasks: dict[str, tuple[int, ...]]  # per suite, those of data.tasks to evaluate, not to learn
    encoder: TuneEncoder
    seed: Seed
