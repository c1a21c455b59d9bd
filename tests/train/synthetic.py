"""A small table of features from which the action can be told exactly."""

import torch

from pipeline.train.data import Episode, Table
from pipeline.train.images import ResidentImages
from tests import base

ARCH = base.architecture()


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
