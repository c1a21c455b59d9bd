"""Fusion: cached features and proprioception -> one condition vector.

All inputs are standardised: of each camera (B, L, P, D) for L observations, oldest first, of P tokens each (a pooled
feature is one), of each signal (B, L, k), and the instruction (B, Dt).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

PROPRIO_DIMS = {"joint_pos": 7, "ee_pose": 7, "gripper": 2, "ee_wrench": 6}
"""LIBERO's."""
# Width of the hidden layer that a patch token passes, for each number that it is compressed to. It finds the plate to
# within 0.9 cm where one linear layer finds it to within 1.1 (docs/experiments.md).
HIDDEN_PER_NUMBER = 8


@dataclass(frozen=True)
class Inputs:
    """Names and sizes of what is fused."""

    cameras: Sequence[str]
    proprio: Sequence[str]
    n_obs_steps: int
    patches: int  # tokens of an image
    image_dim: int
    text_dim: int
    proprio_dims: Mapping[str, int]


def signal_encoders(inputs: Inputs, width: int) -> nn.ModuleDict:
    """Return an encoder per signal, of all its observations: one linear layer without bias and a SiLU.

    7 * 512 = 3.6K parameters each at one observation, as in the reference's table.
    """
    return nn.ModuleDict(
        {
            name: nn.Sequential(nn.Linear(inputs.n_obs_steps * inputs.proprio_dims[name], width, bias=False), nn.SiLU())
            for name in inputs.proprio
        }
    )


def _compressor(dim: int, token_width: int) -> nn.Sequential:
    """Return what compresses a patch token. A hidden layer can tell where in the patch a thing is."""
    hidden = HIDDEN_PER_NUMBER * token_width
    return nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, token_width))


class Fusion(nn.Module):
    """The reference's fusion MLP over [image features..., text feature, proprioception embeddings...].

    Pooled image features and text enter as CLIP gives them. Patch tokens would be some forty times as many numbers: a
    small MLP of each camera's own compresses every token to `token_width`, and its place in the vector tells where it
    is.
    """

    def __init__(self, inputs: Inputs, width: int, token_width: int) -> None:
        super().__init__()
        self.encoders = signal_encoders(inputs, width)
        pooled, dim = inputs.patches == 1, inputs.image_dim
        self.patches = nn.ModuleDict(
            {camera: nn.Identity() if pooled else _compressor(dim, token_width) for camera in inputs.cameras}
        )
        images = inputs.n_obs_steps * inputs.patches * (dim if pooled else token_width)
        total = len(inputs.cameras) * images + inputs.text_dim + len(inputs.proprio) * width
        self.mlp = nn.Sequential(nn.Linear(total, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(
        self, images: Mapping[str, Tensor], text: Float[Tensor, "B Dt"], proprio: Mapping[str, Tensor]
    ) -> Float[Tensor, "B W"]:
        """Return the condition."""
        parts = [patch(images[camera]).flatten(1) for camera, patch in self.patches.items()]
        parts.append(text)
        parts += [encode(proprio[name].flatten(1)) for name, encode in self.encoders.items()]
        return self.mlp(torch.cat(parts, dim=1))
