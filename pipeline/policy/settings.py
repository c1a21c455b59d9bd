"""Settings of the trainable networks."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipeline.ranges import Count, NotNegative, Width

Proprio = Literal["joint_pos", "ee_pose", "gripper", "ee_wrench"]
"""LIBERO's; data of other robots have states of their own (demos.keys.state)."""
HeadName = Literal["flow", "diffusion", "l1", "l2", "cvae", "tokens"]
NetworkName = Literal["mlp", "residual"]
HEADS_IN_STEPS: tuple[HeadName, ...] = ("flow", "diffusion")
"""Those that go from noise to actions in steps, by one of NetworkName."""
NOISE_LEVELS = 100
"""Of the diffusion head, as in Diffusion Policy and LeRobot; its sampling steps divide them."""


@dataclass(frozen=True)
class PolicyParams:
    """The trainable networks: fusion and action head."""

    cameras: Annotated[tuple[str, ...], Field(min_length=1)]  # of embed.cameras
    features: Literal["pooled", "grid"]  # of each frame: CLIP's pooled feature, or the patch tokens of embed.grid
    proprio: tuple[str, ...]  # states that are given beside the images
    n_obs_steps: Count  # observations given, `n_action_steps` apart: the newest, and those before it
    condition_dim: Width  # of every modality's embedding and of the condition
    token_width: Width  # of a compressed patch token
    head: HeadName
    head_network: NetworkName  # network of flow and diffusion; the other heads are MLPs
    head_width: Width  # of its hidden layers
    head_layers: Count  # hidden layers, or residual blocks
    time_dim: Annotated[Width, Field(multiple_of=2)]  # sines and cosines
    horizon: Count  # actions predicted at once (H)
    n_action_steps: Count  # actions of them carried out before the next observation
    sampling_steps: Count  # from noise to action (flow, diffusion)
    standardise_actions: bool  # flow in standardised action units; false: in the environment's, [-1, 1]
    feature_noise: NotNegative  # std of noise on standardised features during training
    augmented_views: bool  # training draws one of embed.views of a frame each time; false: the frame as it is
