"""A small table of features from which the action can be told exactly."""

import torch

from pipeline.policy.network import Architecture
from pipeline.train.data import Episode, Table
from pipeline.train.images import ResidentImages

ARCH = Architecture(
    cameras=("agentview",),
    proprio=("joint_pos",),
    grid=None,
    image_dim=8,
    text_dim=4,
    history=1,
    fusion="mlp",
    width=32,
    token_width=8,
    fusion_layers=1,
    head="flow",
    velocity="mlp",
    velocity_width=64,
    velocity_layers=2,
    time_dim=16,
    horizon=2,
    execute=2,
    times="uniform",
    solver="euler",
    sampling_steps=10,
    standardise_actions=True,
)


def table(episodes: int = 6, length: int = 11, seed: int = 0) -> Table:
    """Return random features and joint positions; actions and keyframes are fixed linear functions of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = episodes * length
    images = torch.randn(rows, 8, generator=generator).half()
    joints = torch.randn(rows, 7, generator=generator)
    mix = torch.randn(8, 7, generator=generator) * 0.15
    first = torch.arange(episodes).repeat_interleave(length) * length
    return Table(
        episodes=tuple(Episode("libero_spatial", 0, f"demo_{i}", i * length, length) for i in range(episodes)),
        images=ResidentImages({"agentview": images}),
        text=torch.ones(1, 4),
        text_of_row=torch.zeros(rows, dtype=torch.int64),
        proprio={"joint_pos": joints},
        action=(images.float() @ mix + 0.1 * joints).clamp(-1, 1),
        last=first + length - 1,
        keyframes=images.float() @ torch.randn(8, 6, generator=generator),
    )
