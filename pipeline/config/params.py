"""Every setting of the pipeline, typed. One class per section of params.yaml; values live in configs/ only.

Sections named after a stage belong to it; `data`, `sim` and `compute` are shared. Machine facts (number of GPUs,
processes) are not here: they are arguments of `accelerate launch` and `configs/accelerate/*.yaml`.
"""

from dataclasses import dataclass
from typing import Any, Literal

Camera = Literal["agentview", "eye_in_hand", "agentview_depth", "eye_in_hand_depth"]
Proprio = Literal["joint_pos", "ee_pose", "gripper", "ee_wrench"]
HeadName = Literal["flow", "diffusion", "l1", "l2", "cvae", "tokens"]
NetworkName = Literal["mlp", "residual", "transformer"]
HEADS_IN_STEPS: tuple[HeadName, ...] = ("flow", "diffusion")
"""Those that go from noise to actions in steps, by one of NetworkName."""
NOISE_LEVELS = 100
"""Of the diffusion head, as in Diffusion Policy and LeRobot; its sampling steps divide them."""
ATTENTION_HEAD = 64
"""Components of an attention head, of every transformer here."""
PLAIN = "plain"
CONDITIONS = {
    "blank_cameras": None,
    "blank_agentview": None,
    "blank_eye_in_hand": None,
    "other_episode": None,
    "other_instruction": None,
    "light": "a factor on all lights",
    "moved_camera": "metres that the agentview camera stands elsewhere, in a direction of each episode's own",
    "displaced": "metres that objects on the table may lie elsewhere, in x and y",
}
"""What evaluation can change beside the plain one, to see what the policy uses, and what the number to it means.

Several at once are joined by +, such as displaced+blank_cameras.
"""


def condition_parts(condition: str) -> tuple[str, ...]:
    """Return what `condition` changes, of CONDITIONS: displaced+blank_cameras is two things."""
    return tuple(condition.split("+"))


@dataclass(frozen=True)
class Data:
    """Which part of LIBERO."""

    suites: tuple[str, ...]
    tasks: dict[str, tuple[int, ...] | None]  # per suite, LIBERO's task ids; null is all of them


@dataclass(frozen=True)
class Sim:
    """The simulator that records demonstrations and evaluates policies. Both must draw alike."""

    assets_path: str | None  # a copy of LIBERO's assets of your own; null: those that are installed
    render: Literal["fast", "full"]
    gl: Literal["auto", "egl", "osmesa"]
    image_size: int  # pixels, square
    settle_steps: int  # control steps of the no-op action before anything counts
    seed: int


@dataclass(frozen=True)
class Demos:
    """Where demonstrations come from."""

    source: Literal["scripted", "path", "official"]
    path: str | None  # source=path: directory that holds <suite>/<task>_demo.hdf5
    episodes: int  # scripted: demonstrations per task
    depth: bool  # scripted: keep the depth of both cameras, too; path: your files have it
    first_init_state: int  # scripted: row of the task's init states that the first one starts from
    displaced: float  # scripted: metres within which what lies on the table is moved in x and y, in a share of them
    displaced_share: float  # scripted: that share, 0 to 1, spread evenly over the rows
    second_tries: float  # scripted: share of them that begin where the hand has missed the object or the target
    noise_sigma: float  # scripted: std of the noise on the executed action, but not while grasping and setting down
    noise_ar: float  # scripted: AR(1) coefficient of that noise
    variety: float  # scripted: how much speed, heights and grasp vary beyond what the scene asks for, 0 to 1
    attempts: int  # scripted: tries per init state before giving up


@dataclass(frozen=True)
class EncoderParams:
    """A frozen CLIP from open_clip."""

    model: str  # open_clip model name
    pretrained: str  # open_clip tag, path of a local checkpoint, or "seeded": random weights drawn from `seed`
    seed: int
    precision: Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class GridParams:
    """Patch tokens of a vision transformer, averaged over squares of patches."""

    size: int  # k x k tokens are kept; divides the number of patches along a side
    layer: int  # -1: as the last block gives them, before pooling and its norm; -2: as the block before does, ...


@dataclass(frozen=True)
class Embed:
    """Stage one: frozen CLIP over all frames, once."""

    encoder: EncoderParams
    cameras: tuple[Camera, ...]
    views: int  # of each frame; the first is the frame as it is; others, for policy.augmented_views, differ in light
    brightness: float  # of the other views: factors in [max(0, 1 - x), 1 + x], as in torchvision's ColorJitter
    contrast: float  # likewise
    view_seed: int  # of these factors
    grid: GridParams | None  # patch tokens to store beside the pooled features; null: none
    obs_shift: int  # 1 pairs obs[t-1] with action[t], because LIBERO records obs[t] after action[t]; 0 does not
    batch_size: int | None  # frames per forward pass; null: 64 on a CPU, what fits on a GPU
    shard_rows: int  # rows per shard, the unit of write
    chunk_rows: int  # rows per chunk, the unit of read, where that makes 2 MiB at most; divides shard_rows
    on_invalid: Literal["quarantine", "stop"]  # what a damaged demonstration does to the build


@dataclass(frozen=True)
class PolicyParams:
    """The trainable networks: fusion and action head."""

    cameras: tuple[Camera, ...]
    features: Literal["pooled", "grid"]  # of each frame: CLIP's pooled feature, or the patch tokens of embed.grid
    proprio: tuple[Proprio, ...]
    history: int  # looks, `execute` steps apart, that the policy is given: the newest, and those before it
    fusion: Literal["mlp", "transformer"]
    width: int  # of every modality's embedding and of the condition
    token_width: int  # of a patch token in the MLP, which takes them all at once; of every token of the transformer
    fusion_layers: int  # blocks of the transformer; the MLP has the reference's two layers
    head: HeadName
    velocity: NetworkName  # network of flow and diffusion; the other heads are MLPs
    velocity_width: int  # of its hidden layers, or of a transformer's tokens
    velocity_layers: int  # hidden layers, or blocks
    time_dim: int
    horizon: int  # actions predicted per look (H)
    execute: int  # actions executed per look
    times: Literal["uniform", "logit_normal", "beta"]  # flow: distribution of t in training; beta: towards the noise
    solver: Literal["euler", "midpoint", "heun"]  # flow: of sampling; the last two ask the network twice a step
    sampling_steps: int  # from noise to action (flow, diffusion)
    standardise_actions: bool  # flow in standardised action units; false: in the environment's, [-1, 1]
    feature_noise: float  # std of noise on standardised features during training
    augmented_views: bool  # training draws one of embed.views of a frame each time; false: the frame as it is


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
    targets: Literal["demonstrations", "reflow", "distill"]  # the last two: samples of a trained flow, for fewer steps
    teacher: str | None  # reflow, distill: its policy bundle
    teacher_steps: int | None  # in which it is sampled; null: as it was trained for
    keyframe_weight: float  # of the auxiliary loss on where the gripper next closes or opens, and after that; 0: none
    epochs: int
    batch_size: int  # global, over all processes
    microbatch_size: int | None  # per process and forward pass; null: batch_size / processes. Accumulation is derived.
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    schedule: Literal["cosine", "constant"]
    clip_norm: float
    ema_decay: float  # 0 turns the average off
    best_by: Literal["val_loss", "val_action_mse", "train_action_mse"] | None  # publish the epoch that is best by this
    early_stop_epochs: int | None  # stop after so many epochs without a better one by `best_by`
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


@dataclass(frozen=True)
class EvalLibero:
    """Rollouts in the simulator, by the protocol of OpenVLA and openpi."""

    episodes: int  # per task
    first_init_state: int  # row of init states for episode 0
    max_steps: int | None  # control steps after settling; null is the suite's usual limit
    timeout_s: float  # wall-clock limit of one episode
    videos_per_task: int
    sampling_steps: int | None  # null: the policy's own
    execute: int | None  # actions carried out of each chunk before the next look; null: the policy's own
    temporal_ensemble: float | None  # look at every step, average with weights exp(-x i), oldest first (ACT: 0.01)
    conditions: dict[str, float | None]  # of CONDITIONS: each evaluated beside the plain one, on the same init states
    condition_episodes: int | None  # per task under each of them, the first ones; null: all
    seed: int  # of the flow's noise, one generator per episode


@dataclass(frozen=True)
class Comparison:
    """Policies to train and evaluate beside the default one, on the same store and init states; nothing by default.

    With policy `l1` and seed 0: runs/l1-0 and results/comparison/l1-0.
    """

    policies: dict[str, dict[str, Any]]  # by name, what differs: settings of `policy` and `train_flow`, by dotted name
    seeds: tuple[int, ...]  # of train_flow, for each of them
    by_steps: tuple[str, ...]  # those to evaluate with all of `sampling_steps`, too
    sampling_steps: tuple[int, ...]
    against: tuple[str, ...]  # results that the others are compared with, such as l1-0: a page for each

    def runs(self) -> tuple[str, ...]:
        """Return the names of the policies trained, such as l1-0."""
        return tuple(f"{policy}-{seed}" for policy in self.policies for seed in self.seeds)

    def runs_by_steps(self) -> tuple[str, ...]:
        """Return the names of their evaluations by sampling steps, such as flow-0-steps-4."""
        return tuple(
            f"{policy}-{seed}-steps-{n}" for policy in self.by_steps for seed in self.seeds for n in self.sampling_steps
        )


def training_of(run: str) -> str:
    """Return the name of the training that an evaluation is of: flow-0 for flow-0-steps-4."""
    return run.partition("-steps-")[0]


@dataclass(frozen=True)
class Tls:
    """Files (PEM) that a Dask cluster is entered with; its scheduler and workers have their own of the same CA."""

    ca: str  # certificate of the authority that signed the others
    cert: str  # of this client
    key: str  # to the certificate


@dataclass(frozen=True)
class Compute:
    """Where demos, embed and eval_libero run. Results do not depend on it, but for rollouts on threads_per_worker."""

    scheduler: str  # "serial", "local" (Dask workers on this machine), tcp://host:port or tls://host:port
    workers: int | None  # local: processes; null is the number of cores
    threads_per_worker: int | None  # torch threads; null shares the cores among the workers (rollouts: one each)
    tls: Tls | None = None  # for tls://


@dataclass(frozen=True)
class Params:
    """params.yaml."""

    experiment: str
    data: Data
    sim: Sim
    demos: Demos
    embed: Embed
    policy: PolicyParams
    train_flow: TrainFlow
    eval_libero: EvalLibero
    comparison: Comparison
    compute: Compute
