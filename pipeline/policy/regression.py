"""Heads that need no steps: direct regression, and a conditional variational autoencoder."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.policy.head import Head
from pipeline.policy.velocity import hidden_layers

LATENT = 32  # of the CVAE, and
KL_WEIGHT = 10.0  # as in ACT (Zhao et al., RSS 2023, arXiv 2304.13705)


class Regression(Head):
    """One action chunk per condition: the median of the demonstrated ones (L1, as OpenVLA-OFT) or their mean (L2).

    Args:
        power: of the error, 1 or 2.
    """

    def __init__(self, horizon: int, action_dim: int, condition_dim: int, width: int, layers: int, power: int) -> None:
        super().__init__()
        self._shape = (horizon, action_dim)
        self._power = power
        self.net = nn.Sequential(*hidden_layers(condition_dim, width, layers), nn.Linear(width, horizon * action_dim))

    def loss(
        self,
        actions: Float[Tensor, "B H A"],
        condition: Float[Tensor, "B W"],
        noise: Float[Tensor, "B H A"],
        u: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Return each row's mean error; noise and u are not used."""
        return (self.sample(condition, noise, 1) - actions).abs().pow(self._power).mean(dim=(1, 2))

    def sample(
        self, condition: Float[Tensor, "B W"], noise: Float[Tensor, "B H A"], steps: int
    ) -> Float[Tensor, "B H A"]:
        """Return the one answer; noise and steps are not used."""
        return self.net(condition).unflatten(1, self._shape)


class Cvae(Head):
    """Actions decoded from the condition and a latent z: ACT's objective, L1 and the KL divergence to N(0, I).

    Sampling draws z from N(0, I), the first components of `noise` (ACT itself takes z = 0).
    """

    def __init__(self, horizon: int, action_dim: int, condition_dim: int, width: int, layers: int) -> None:
        super().__init__()
        size = horizon * action_dim
        self._shape = (horizon, action_dim)
        self._latent = min(LATENT, size)
        self.posterior = nn.Sequential(
            *hidden_layers(size + condition_dim, width, layers), nn.Linear(width, 2 * self._latent)
        )
        self.decoder = nn.Sequential(
            *hidden_layers(self._latent + condition_dim, width, layers), nn.Linear(width, size)
        )

    def loss(
        self,
        actions: Float[Tensor, "B H A"],
        condition: Float[Tensor, "B W"],
        noise: Float[Tensor, "B H A"],
        u: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Return each row's L1 error at z drawn from the posterior with `noise`, and KL_WEIGHT times the divergence."""
        mean, log_variance = self.posterior(torch.cat([actions.flatten(1), condition], dim=1)).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * self._z(noise)
        error = (self._decode(z, condition) - actions).abs().mean(dim=(1, 2))
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return error + KL_WEIGHT * divergence

    def sample(
        self, condition: Float[Tensor, "B W"], noise: Float[Tensor, "B H A"], steps: int
    ) -> Float[Tensor, "B H A"]:
        """Return actions; `steps` is not used."""
        return self._decode(self._z(noise), condition)

    def _z(self, noise: Float[Tensor, "B H A"]) -> Float[Tensor, "B L"]:
        return noise.flatten(1)[:, : self._latent]

    def _decode(self, z: Float[Tensor, "B L"], condition: Float[Tensor, "B W"]) -> Float[Tensor, "B H A"]:
        return self.decoder(torch.cat([z, condition], dim=1)).unflatten(1, self._shape)
