"""Standardisation of inputs and actions. Saved with the policy, so that rollout uses the training set's statistics."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Below this spread a dimension is taken as constant. Actions are in [-1, 1]; positions in metres and radians:
# 0.01 is half a millimetre of commanded motion, or under one degree of a joint.
MIN_STD = 1e-2
FEATURE_MIN_STD = 1e-4  # features have no unit; this only guards against a division by zero


class Standardiser(nn.Module):
    """(x - mean) / std per dimension, and back."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, rows: Float[Tensor, "N D"], min_std: float = MIN_STD) -> None:
        """Take mean and standard deviation from the rows of the training set."""
        wide = rows.double()
        self.mean.copy_(wide.mean(0))
        self.std.copy_(wide.std(0, correction=0).clamp_min(min_std))

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return (x - self.mean) / self.std

    def inverse(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return x * self.std + self.mean


class Normaliser(nn.Module):
    """The standardisers of all inputs, and of actions where that is asked for.

    Text is scaled to unit root mean square instead: a policy of one task has one instruction, whose spread is nothing.
    """

    def __init__(
        self, image_dims: Mapping[str, int], proprio_dims: Mapping[str, int], action_dim: int, standardise_actions: bool
    ) -> None:
        super().__init__()
        self.images = nn.ModuleDict({name: Standardiser(dim) for name, dim in image_dims.items()})
        self.proprio = nn.ModuleDict({name: Standardiser(dim) for name, dim in proprio_dims.items()})
        self.action = Standardiser(action_dim)
        self._standardise_actions = standardise_actions  # otherwise mean 0, spread 1

    def fit(self, images: Mapping[str, Tensor], proprio: Mapping[str, Tensor], action: Float[Tensor, "N A"]) -> None:
        """Take the statistics of the training rows: images name -> (N, D), proprio name -> (N, k)."""
        for name, rows in images.items():
            _standardiser(self.images, name).fit(rows.float(), FEATURE_MIN_STD)
        for name, rows in proprio.items():
            _standardiser(self.proprio, name).fit(rows.float())
        if self._standardise_actions:
            self.action.fit(action)

    def inputs(
        self, images: Mapping[str, Tensor], text: Float[Tensor, "B D"], proprio: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Return the three inputs of Fusion, standardised, float32."""
        scale = text.float().square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
        return (
            {name: module(images[name].float()) for name, module in self.images.items()},
            text.float() / scale,
            {name: module(proprio[name].float()) for name, module in self.proprio.items()},
        )


def _standardiser(modules: nn.ModuleDict, name: str) -> Standardiser:
    module = modules[name]
    assert isinstance(module, Standardiser)
    return module
