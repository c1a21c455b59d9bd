"""Standardisation of inputs and actions. Saved with the policy, so that rollout uses the training set's statistics."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8, Num
from torch import Tensor, nn

# Below this spread a dimension is taken as constant. Actions are in [-1, 1]; positions in metres and radians:
# 0.01 is half a millimetre of commanded motion, or under one degree of a joint. Forces in N spread by far more.
MIN_STD = 1e-2
# Of robots whose units are not known: below this share of the widest component of a signal, a component is constant.
CONSTANT_SHARE = 1e-3
FEATURE_MIN_STD = 1e-4  # features have no unit; this only guards against a division by zero
# A patch in which next to nothing happens is not to be blown up: at least this much of the spread that the same channel
# has in the camera's patches on the whole.
PATCH_MIN_STD = 0.1
BLOCK = 2**17  # numbers that a CPU standardises at a time: its cache holds them from one operation to the next


class Noise(NamedTuple):
    """Noise of mean 0 on standardised features: (levels + 1/2) * step, of 256 equidistant values."""

    levels: Int8[Tensor, "*shape"]
    step: float

    @classmethod
    def of(cls, levels: Int8[Tensor, "*shape"], std: float) -> "Noise":
        """Return noise of this standard deviation; `levels` are uniform bytes."""
        return cls(levels, std / math.sqrt((256**2 - 1) / 12))


class Moments:
    """Mean and standard deviation, of each number of a row by itself, of rows that come in parts, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())  # sum of squared deviations from the mean

    def add(self, rows: Num[Tensor, "N *shape"]) -> None:
        """Take more rows in, from any device, by the pairwise update of Chan, Golub and LeVeque."""
        wide = (rows.cpu() if rows.device.type == "mps" else rows).double()  # which Apple's GPUs do not have
        there = wide.mean(0)
        mean, squares = there.cpu(), (wide - there).square().sum(0).cpu()
        if self.count == 0:
            self._mean, self._squares = torch.zeros_like(mean), torch.zeros_like(mean)
        total = self.count + len(rows)
        delta = mean - self._mean
        self._squares = self._squares + squares + delta.square() * (self.count * len(rows) / total)
        self._mean = self._mean + delta * (len(rows) / total)
        self.count = total

    @property
    def mean(self) -> Float[Tensor, "*shape"]:
        """Mean."""
        return self._mean

    @property
    def std(self) -> Float[Tensor, "*shape"]:
        """Standard deviation, of the rows themselves (divided by their number)."""
        return (self._squares / self.count).sqrt()


class Standardiser(nn.Module):
    """(x - mean) / std, of each number of the last axes, `shape`, by itself; and back."""

    mean: Tensor
    std: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def fit(self, moments: Moments, min_std: float | Tensor = MIN_STD) -> None:
        """Take mean and standard deviation of the training set's rows."""
        self.mean.copy_(moments.mean)
        self.std.copy_(torch.maximum(moments.std, torch.as_tensor(min_std, dtype=moments.std.dtype)))

    def forward(self, x: Float[Tensor, "*rows_and_shape"]) -> Float[Tensor, "*rows_and_shape"]:
        self._require_shape(x)
        return (x - self.mean) / self.std

    def noisy(self, x: Float[Tensor, "*rows_and_shape"], noise: Noise) -> Float[Tensor, "*rows_and_shape"]:
        """Return forward(x) + noise, in the type that autocast multiplies in, if it is on.

        Patch tokens are millions of numbers a batch, which a CPU takes longer to fetch and put back than to calculate
        with: there it is done block by block.
        """
        self._require_shape(x)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        scale = 1 / self.std
        shift = noise.step / 2 - self.mean * scale

        def add(part: Tensor, levels: Tensor) -> Tensor:
            return torch.addcmul(shift, part.float(), scale).add_(levels, alpha=noise.step)

        if kind != "cpu" or x.requires_grad:
            return add(x, noise.levels).to(dtype)
        out = torch.empty(x.shape, dtype=dtype)
        rows = max(1, BLOCK // math.prod(x.shape[1:]))
        for part, levels, into in zip(x.split(rows), noise.levels.split(rows), out.split(rows), strict=True):
            into.copy_(add(part, levels))
        return out

    def _require_shape(self, x: Tensor) -> None:
        if x.shape[x.ndim - self.mean.ndim :] != self.mean.shape:  # a pooled feature would be taken for every patch
            raise ValueError(f"{tuple(x.shape)} does not end in {tuple(self.mean.shape)}")

    def inverse(self, x: Float[Tensor, "*rows_and_shape"]) -> Float[Tensor, "*rows_and_shape"]:
        return x * self.std + self.mean


class Normaliser(nn.Module):
    """The standardisers of all inputs, and of actions where that is asked for.

    A grid's patches are standardised each by itself: of a camera that stands still, that takes the background away, and
    what a patch has for being in its place.

    Text is scaled to unit root mean square instead: a policy of one task has one instruction, whose spread is nothing.

    Args:
        image_shapes: camera -> (D,) of a pooled feature, (P, D) of a grid's P patches.
        proprio_dims: input -> k.
        bounds: of each component of an action in the demonstrations, if they are not LIBERO's. Their units are not
            known then, and actions that are not standardised are scaled from there to [-1, 1].
    """

    def __init__(
        self,
        image_shapes: Mapping[str, tuple[int, ...]],
        proprio_dims: Mapping[str, int],
        action_dim: int,
        standardise_actions: bool,
        bounds: Sequence[tuple[float, float]] = (),
    ) -> None:
        super().__init__()
        self.images = nn.ModuleDict({name: Standardiser(*shape) for name, shape in image_shapes.items()})
        self.proprio = nn.ModuleDict({name: Standardiser(dim) for name, dim in proprio_dims.items()})
        self.action = Standardiser(action_dim)
        self._standardise_actions = standardise_actions  # otherwise mean 0, spread 1
        self._bounds = tuple(bounds)

    def fit(self, images: Mapping[str, Moments], proprio: Mapping[str, Moments], action: Moments) -> None:
        """Take the statistics of the training rows, of each camera's features, each input of proprio, and actions."""
        for name, moments in images.items():
            usual = moments.std.square().reshape(-1, moments.std.shape[-1]).mean(0).sqrt()
            _standardiser(self.images, name).fit(moments, (PATCH_MIN_STD * usual).clamp_min(FEATURE_MIN_STD))
        for name, moments in proprio.items():
            _standardiser(self.proprio, name).fit(moments, self._min_std(moments))
        if self._standardise_actions:
            self.action.fit(action, self._min_std(action))
        elif self._bounds:
            low, high = torch.tensor(self._bounds, dtype=torch.float64).T
            self.action.mean.copy_((low + high) / 2)
            self.action.std.copy_(torch.where(high > low, (high - low) / 2, 1.0))

    def _min_std(self, moments: Moments) -> float:
        if not self._bounds:
            return MIN_STD
        return CONSTANT_SHARE * float(moments.std.max()) or 1.0

    def inputs(
        self,
        images: Mapping[str, Tensor],
        text: Float[Tensor, "B D"],
        proprio: Mapping[str, Tensor],
        noise: Mapping[str, Noise] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Return the three inputs of Fusion, standardised, float32; of images, with `noise`, what `noisy` gives."""
        scale = text.float().square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
        standardisers = {name: _standardiser(self.images, name) for name in self.images}
        return (
            {
                name: standardise.noisy(images[name], noise[name]) if noise else standardise(images[name].float())
                for name, standardise in standardisers.items()
            },
            text.float() / scale,
            {name: module(proprio[name].float()) for name, module in self.proprio.items()},
        )


def _standardiser(modules: nn.ModuleDict, name: str) -> Standardiser:
    module = modules[name]
    assert isinstance(module, Standardiser)
    return module
