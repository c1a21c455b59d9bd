"""Fusion: cached features and proprioception -> one condition vector."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

PROPRIO_DIMS = {"joint_pos": 7, "ee_pose": 7, "gripper": 2}


class Fusion(nn.Module):
    """The reference's fusion MLP over [image features..., text feature, proprioception embeddings...].

    Each proprioceptive input has an encoder of its own: one linear layer without bias and a SiLU, 7 * 512 = 3.6K
    parameters as in the reference's table. Image and text features enter as CLIP gives them.
    """

    def __init__(
        self, cameras: Sequence[str], proprio: Sequence[str], image_dim: int, text_dim: int, width: int
    ) -> None:
        super().__init__()
        self.cameras = tuple(cameras)
        self.proprio = tuple(proprio)
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(PROPRIO_DIMS[name], width, bias=False), nn.SiLU()) for name in self.proprio}
        )
        inputs = len(self.cameras) * image_dim + text_dim + len(self.proprio) * width
        self.mlp = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(
        self, images: Mapping[str, Tensor], text: Float[Tensor, "B Dt"], proprio: Mapping[str, Tensor]
    ) -> Float[Tensor, "B W"]:
        """Return the condition. All inputs are standardised: images (B, D) per camera, proprio (B, k) per name."""
        parts = [images[camera] for camera in self.cameras]
        parts.append(text)
        parts += [self.encoders[name](proprio[name]) for name in self.proprio]
        return self.mlp(torch.cat(parts, dim=1))
