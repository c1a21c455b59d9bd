"""Discretised actions: 256 bins per dimension, as in RT-2 (arXiv 2307.15818) and OpenVLA (arXiv 2406.09246)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pipeline.policy.head import Head
from pipeline.policy.velocity import hidden_layers

BINS = 256
TOKEN_DIM = 64
"""Of what is decoded for each action component. One matrix of TOKEN_DIM x BINS serves all: 256 classes of their own for
each of 16 x 7 components would be 29M parameters at width 1024."""


class ActionTokens(Head):
    """A class for each component of each action in [-1, 1], all decoded at once (in parallel, as in OpenVLA-OFT)."""

    centres: Tensor

    def __init__(self, horizon: int, action_dim: int, condition_dim: int, width: int, layers: int) -> None:
        super().__init__()
        self._shape = (horizon, action_dim)
        self.net = nn.Sequential(
            *hidden_layers(condition_dim, width, layers), nn.Linear(width, horizon * action_dim * TOKEN_DIM)
        )
        self.classes = nn.Sequential(nn.SiLU(), nn.Linear(TOKEN_DIM, BINS))
        self.register_buffer("centres", (torch.arange(BINS) + 0.5) * 2 / BINS - 1, persistent=False)

    def loss(
        self,
        actions: Float[Tensor, "B H A"],
        condition: Float[Tensor, "B W"],
        noise: Float[Tensor, "B H A"],
        u: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Return each row's mean cross-entropy, in nats; noise and u are not used."""
        logits = self._logits(condition).flatten(0, 2)
        entropy = functional.cross_entropy(logits, bins(actions).flatten(), reduction="none")
        return entropy.view_as(actions).mean(dim=(1, 2))

    def sample(
        self, condition: Float[Tensor, "B W"], noise: Float[Tensor, "B H A"], steps: int
    ) -> Float[Tensor, "B H A"]:
        """Return the centre of the likeliest bin of each component; noise and steps are not used."""
        return self.centres[self._logits(condition).argmax(-1)]

    def _logits(self, condition: Float[Tensor, "B W"]) -> Float[Tensor, "B H A bins"]:
        return self.classes(self.net(condition).unflatten(1, (*self._shape, TOKEN_DIM)))


def bins(actions: Float[Tensor, "B H A"]) -> Int[Tensor, "B H A"]:
    """Return the bin of each action in [-1, 1]; what lies outside goes to the last bin on its side."""
    return ((actions + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
