"""Velocity networks v(x_t, t, c)."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def sinusoid(t: Float[Tensor, " B"], dim: int) -> Float[Tensor, "B dim"]:
    """Return sines and cosines of t in [0, 1] at dim/2 frequencies from 1 to 1000, evenly spaced in the logarithm."""
    exponents = torch.linspace(0, math.log(1000.0), dim // 2, device=t.device, dtype=torch.float32)
    angle = t.float()[:, None] * exponents.exp()[None]
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(t.dtype)


def hidden_layers(inputs: int, width: int, layers: int) -> list[nn.Module]:
    """Return `layers` linear layers of `width` with a SiLU after each."""
    sizes = [inputs, *[width] * layers]
    return [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]


Precomputed = tuple[Tensor, ...]
AHEAD_ROWS = 1024  # beyond, arithmetic is what takes time, and what is computed ahead takes memory


class VelocityNetwork(nn.Module):
    """v(x_t, t, c) in two parts: what t and c alone decide, and the rest.

    At batch 1 a network takes as long as its weights take to read; sampling reads those of the first part once for all
    its steps (`at_times`), not once a step.
    """

    def precompute(self, t: Float[Tensor, " B"], condition: Float[Tensor, "B W"]) -> Precomputed:
        """Return what follows from time and condition, a row for each of theirs."""
        raise NotImplementedError

    def velocity_at(self, x_t: Float[Tensor, "B H A"], given: Precomputed) -> Float[Tensor, "B H A"]:
        """Return the velocity at x_t. Units: standardised action per unit of flow time."""
        raise NotImplementedError

    def forward(
        self, x_t: Float[Tensor, "B H A"], t: Float[Tensor, " B"], condition: Float[Tensor, "B W"]
    ) -> Float[Tensor, "B H A"]:
        """Return the velocity at x_t and t."""
        return self.velocity_at(x_t, self.precompute(t, condition))


@runtime_checkable
class AtTimes(Protocol):
    """What a velocity network has that computes ahead in a way of its own."""

    def at_times(self, times: Sequence[float], condition: Tensor) -> Callable[[Tensor, float], Tensor]:
        """Return (x_t, t) -> velocity(x_t, t, condition) for these times."""


def at_times(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor], times: Iterable[float], condition: Tensor
) -> Callable[[Tensor, float], Tensor]:
    """Return (x_t, t) -> velocity(x_t, t, condition) for these times, which are the same for all rows.

    A network with a way of its own has a method `at_times`.
    """
    known = list(dict.fromkeys(times))
    if isinstance(velocity, AtTimes):
        return velocity.at_times(known, condition)
    rows = len(condition)

    def codes(values: Sequence[float], x: Tensor) -> Tensor:
        return torch.cat([x.new_full((rows,), time) for time in values])  # no copy from the host: see cuda_graph

    if not isinstance(velocity, VelocityNetwork) or rows * len(known) > AHEAD_ROWS:
        return lambda x, time: velocity(x, codes([time], x), condition)
    every = velocity.precompute(codes(known, condition), condition.repeat(len(known), 1))
    given = {time: tuple(x[i * rows : (i + 1) * rows] for x in every) for i, time in enumerate(known)}
    return lambda x, time: velocity.velocity_at(x, given[time])


class MlpVelocity(VelocityNetwork):
    """The reference's network: an MLP on [x_t, time, condition]. About 3M parameters at width 1024, 3 layers, A=7."""

    def __init__(
        self, horizon: int, action_dim: int, condition_dim: int, width: int, layers: int, time_dim: int
    ) -> None:
        super().__init__()
        self.time_dim = time_dim
        self.time = nn.Sequential(nn.Linear(time_dim, time_dim), nn.SiLU())
        inputs = horizon * action_dim + time_dim + condition_dim
        self.net = nn.Sequential(*hidden_layers(inputs, width, layers), nn.Linear(width, horizon * action_dim))
        self._open_to_noise(horizon * action_dim)

    @torch.no_grad()
    def _open_to_noise(self, size: int) -> None:
        """Let x_t weigh as much as all other inputs together, which outnumber it a hundredfold.

        Near t = 1 the noise that the velocity is made of is a small rest of x_t. With torch's own initial weights the
        loss of the reference's overfit is 1.7 times as high after 1,500 steps, most of it at t > 0.9.
        """
        self._first.weight[:, :size].normal_(std=1.5 / math.sqrt(size))

    @property
    def _first(self) -> nn.Linear:
        return cast(nn.Linear, self.net[0])

    def precompute(self, t: Float[Tensor, " B"], condition: Float[Tensor, "B W"]) -> Precomputed:
        rest = torch.cat([self.time(sinusoid(t, self.time_dim)), condition], dim=1)
        return (functional.linear(rest, self._first.weight[:, -rest.shape[1] :], self._first.bias),)

    def velocity_at(self, x_t: Float[Tensor, "B H A"], given: Precomputed) -> Float[Tensor, "B H A"]:
        flat = x_t.flatten(1)
        hidden = functional.linear(flat, self._first.weight[:, : flat.shape[1]]) + given[0]
        for layer in itertools.islice(self.net, 1, None):
            hidden = layer(hidden)
        return hidden.view_as(x_t)


class ResidualVelocity(VelocityNetwork):
    """An MLP of residual blocks, each scaled and shifted by time and condition (FiLM, arXiv 1709.07871)."""

    def __init__(
        self, horizon: int, action_dim: int, condition_dim: int, width: int, layers: int, time_dim: int
    ) -> None:
        super().__init__()
        self.time_dim = time_dim
        self.time = nn.Sequential(nn.Linear(time_dim, time_dim), nn.SiLU())
        self.in_proj = nn.Linear(horizon * action_dim, width)
        self.blocks = nn.ModuleList(_ResidualBlock(width, time_dim + condition_dim) for _ in range(layers))
        self.out_proj = nn.Linear(width, horizon * action_dim)

    def precompute(self, t: Float[Tensor, " B"], condition: Float[Tensor, "B W"]) -> Precomputed:
        seen = torch.cat([self.time(sinusoid(t, self.time_dim)), condition], dim=1)
        return tuple(block.film(seen) for block in cast("list[_ResidualBlock]", self.blocks))

    def velocity_at(self, x_t: Float[Tensor, "B H A"], given: Precomputed) -> Float[Tensor, "B H A"]:
        x = self.in_proj(x_t.flatten(1))
        for block, film in zip(self.blocks, given, strict=True):
            x = block(x, film)
        return self.out_proj(x).view_as(x_t)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, given: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(given, 2 * width)
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)  # each block begins as the identity
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, x: Float[Tensor, "B width"], film: Float[Tensor, "B film"]) -> Float[Tensor, "B width"]:
        scale, shift = film.chunk(2, dim=1)
        return x + self.net(self.norm(x) * (1 + scale) + shift)
