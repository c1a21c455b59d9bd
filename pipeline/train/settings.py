"""Settings of stage two."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TuneEncoder:
    """Whether training goes through CLIP's image tower, from raw frames."""

    tune: Literal["none", "lora", "full"]  # none: on cached features
    learning_rate: float  # of what is tuned of the tower
    lora_rank: int  # of the update of each matrix; its scale alpha is twice that
    gradient_checkpointing: bool  # less memory for activations, more time


@dataclass(frozen=True)
class TrainFlow:
    """Stage two: fusion and flow on cached features."""

    action: Literal[
        "action", "expert_action"
    ]  # the label: the action executed, or the scripted expert's noise-free one
    teacher: str | None  # bundle of a trained flow, whose samples are learnt instead of the demonstrations (reflow)
    teacher_steps: int | None  # in which it is sampled; null: as it was trained for
    keyframe_weight: float  # of the auxiliary loss on where the gripper next closes or opens, and after that; 0: none
    epochs: int
    batch_size: int  # global, over all processes
    microbatch_size: int | None  # per process and forward pass; null: batch_size / processes. Accumulation is derived.
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    clip_norm: float
    ema_decay: float  # 0 turns the average off
    val_fraction: float  # of episodes
    metrics_every_epochs: int  # action MSE and MAE, by sampling; the losses are tracked every epoch
    metrics_rows: int  # rows of each split that action MSE and MAE are sampled on
    checkpoint_every_epochs: int
    precision: Literal["no", "bf16", "fp16"]
    data_mode: Literal["auto", "resident", "streaming"]  # image features in memory or streamed; auto: by their size
    memory_mib: int  # most that image features may take: auto streams beyond it, and streaming keeps to it
    balance: Literal["none", "task"]  # every row once an epoch, or every task equally often
    held_out_tasks: dict[str, tuple[int, ...]]  # per suite, those of data.tasks not to learn from, only to evaluate
    encoder: TuneEncoder
    seed: int
