"""Fusion: cached features and proprioception -> one condition vector.

All inputs are standardised: of each camera (B, L, P, D) for L looks, oldest first, of P tokens each (a pooled feature
is one), of each signal (B, L, k), and the instruction (B, Dt).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config import ATTENTION_HEAD

PROPRIO_DIMS = {"joint_pos": 7, "ee_pose": 7, "gripper": 2, "ee_wrench": 6}
# Width of the hidden layer that a patch token passes, for each number that it is compressed to. It finds the plate to
# within 0.9 cm where one linear layer finds it to within 1.1 (docs/experiments.md).
HIDDEN_PER_NUMBER = 8


@dataclass(frozen=True)
class Inputs:
    """Names and sizes of what is fused."""

    cameras: Sequence[str]
    proprio: Sequence[str]
    looks: int
    patches: int  # tokens of an image
    image_dim: int
    text_dim: int


def signal_encoders(inputs: Inputs, width: int) -> nn.ModuleDict:
    """Return an encoder per signal, of all its looks: one linear layer without bias and a SiLU.

    7 * 512 = 3.6K parameters each at one look, as in the reference's table.
    """
    return nn.ModuleDict(
        {
            name: nn.Sequential(nn.Linear(inputs.looks * PROPRIO_DIMS[name], width, bias=False), nn.SiLU())
            for name in inputs.proprio
        }
    )


def _compressor(dim: int, token_width: int) -> nn.Sequential:
    """Return what compresses a patch token. A hidden layer can tell where in the patch a thing is."""
    hidden = HIDDEN_PER_NUMBER * token_width
    return nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, token_width))


class MlpFusion(nn.Module):
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
        images = inputs.looks * inputs.patches * (dim if pooled else token_width)
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


class TransformerFusion(nn.Module):
    """A transformer over tokens: patches or pooled features of each look, text, each signal, and one to read out."""

    def __init__(self, inputs: Inputs, width: int, token_width: int, layers: int) -> None:
        super().__init__()
        self.encoders = signal_encoders(inputs, token_width)
        self.patches = nn.ModuleDict({camera: nn.Linear(inputs.image_dim, token_width) for camera in inputs.cameras})
        self.text = nn.Linear(inputs.text_dim, token_width)
        tokens = 2 + len(inputs.cameras) * inputs.looks * inputs.patches + len(inputs.proprio)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, token_width))
        block = nn.TransformerEncoderLayer(
            token_width,
            token_width // ATTENTION_HEAD,
            4 * token_width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(token_width), enable_nested_tensor=False)
        self.leave = nn.Sequential(nn.Linear(token_width, width), nn.SiLU())

    def forward(
        self, images: Mapping[str, Tensor], text: Float[Tensor, "B Dt"], proprio: Mapping[str, Tensor]
    ) -> Float[Tensor, "B W"]:
        """Return the condition."""
        words = self.text(text)[:, None]
        tokens = [torch.zeros_like(words), words]  # the readout is its place alone
        tokens += [enter(images[camera]).flatten(1, 2) for camera, enter in self.patches.items()]
        tokens += [encode(proprio[name].flatten(1))[:, None] for name, encode in self.encoders.items()]
        return self.leave(self.blocks(torch.cat(tokens, dim=1) + self.place)[:, 0])
