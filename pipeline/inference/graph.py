"""What is exported, as modules of tensors alone: the policy with its sampling steps unrolled, and CLIP's two towers."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encode.clip import ClipEncoder
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.policy.normaliser import Standardiser
from pipeline.policy.settings import HEADS_IN_STEPS
from pipeline.policy.velocity import MlpVelocity, ResidualVelocity, VelocityNetwork, sinusoid

NOISE, TEXT, FRAMES, TOKENS = "noise", "text", "frames", "tokens"
Inputs = dict[str, Tensor]


class Graph(nn.Module):
    """A module that is exported: tensors in, by name, each with a leading axis of the batch; one tensor out."""

    output = "features"

    def forward(self, inputs: Inputs) -> Tensor:
        raise NotImplementedError

    def examples(self, rows: int, seed: int) -> Inputs:
        """Return random inputs of `rows` rows."""
        raise NotImplementedError


class UnrolledPolicy(Graph):
    """The inputs of `input_shapes` in, (B, H, A) actions out, in the environment's units, clipped to their range.

    Standardisation and all sampling steps are inside.

    Args:
        network: is not changed.
        steps: of sampling.
    """

    output = "actions"

    def __init__(self, network: PolicyNetwork, steps: int) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._steps = steps
        for name, part in list(self.network.head.named_children()):
            if isinstance(part, VelocityNetwork):
                setattr(self.network.head, name, SharedTimes(part))

    def forward(self, inputs: Inputs) -> Float[Tensor, "B H A"]:
        return act(self.network, inputs, self._steps)

    def examples(self, rows: int, seed: int) -> Inputs:
        """Return inputs of the training set's mean and spread: far from them all actions would be clipped."""
        generator = torch.Generator().manual_seed(seed)
        shapes, normaliser = input_shapes(self.network.arch), self.network.normaliser
        drawn = {name: torch.randn(rows, *shape, generator=generator) for name, shape in shapes.items()}
        for name, standardise in [*normaliser.images.items(), *normaliser.proprio.items()]:
            assert isinstance(standardise, Standardiser)
            drawn[name] = standardise.inverse(drawn[name])
        return drawn


def act(network: PolicyNetwork, inputs: Mapping[str, Tensor], steps: int) -> Float[Tensor, "B H A"]:
    """Return `network.act` of inputs that are known by name."""
    arch = network.arch
    text = inputs[TEXT]
    noise = inputs[NOISE] if takes_noise(arch) else text.new_zeros(text.shape[0], arch.horizon, arch.action_dim)
    images, proprio = ({name: inputs[name] for name in part} for part in (arch.cameras, arch.proprio))
    return network.act(images, text, proprio, noise, steps)


def takes_noise(arch: Architecture) -> bool:
    """Whether the head's actions depend on noise."""
    return arch.head in (*HEADS_IN_STEPS, "cvae")


def input_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of one row of each input of the policy's graph, in its order, by name."""
    past = (arch.n_obs_steps,) if arch.n_obs_steps > 1 else ()
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(arch.cameras, arch.image_shape)
    shapes[TEXT] = (arch.text_dim,)
    shapes |= {name: (*past, size) for name, size in arch.proprio_dims.items()}
    return shapes | ({NOISE: (arch.horizon, arch.action_dim)} if takes_noise(arch) else {})


class SharedTimes(nn.Module):
    """A velocity network at times that are known beforehand and the same for all rows.

    Its layers that read [time, condition] are split in two. What the time adds is a constant of each step, then, and
    what the condition adds is computed once for all steps, for one row each.
    """

    def __init__(self, network: VelocityNetwork) -> None:
        super().__init__()
        self.network = network

    def at_times(self, times: Sequence[float], condition: Float[Tensor, "B W"]) -> Callable[[Tensor, float], Tensor]:
        """Return (x_t, t) -> velocity(x_t, t, condition)."""
        network = self.network
        if not isinstance(network, MlpVelocity | ResidualVelocity):
            return lambda x, t: network(x, torch.full_like(x[:, 0, 0], t), condition)
        code = network.time(sinusoid(torch.tensor(times, dtype=condition.dtype), network.time_dim))
        size = code.shape[1]
        layers = _layers_of_time(network, size + condition.shape[1])
        of_time = [functional.linear(code, weight[:, :size], bias) for weight, bias in layers]
        of_condition = [functional.linear(condition, weight[:, size:]) for weight, _ in layers]
        rows = {t: k for k, t in enumerate(times)}

        def velocity(x: Tensor, t: float) -> Tensor:
            k = rows[t]
            return network.velocity_at(x, tuple(a[k] + b for a, b in zip(of_time, of_condition, strict=True)))

        return velocity


def _layers_of_time(network: MlpVelocity | ResidualVelocity, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of the layers that read [time, condition], of so many numbers together."""
    if isinstance(network, MlpVelocity):
        first = network.net[0]
        assert isinstance(first, nn.Linear)
        return [(first.weight[:, -size:], first.bias)]
    films = [block.get_submodule("film") for block in network.blocks]
    return [(film.weight, film.bias) for film in films if isinstance(film, nn.Linear)]


class ImageTower(Graph):
    """Frames of the encoder's own size in, uint8 RGB (B, S, S, 3), the features out that the policy uses, float32.

    Args:
        encoder: in fp32 on the CPU, with the policy's own tower if that was tuned.
        kind: "image", pooled features (B, D), or "grid", patch tokens (B, P, W).
    """

    def __init__(self, encoder: ClipEncoder, kind: str) -> None:
        super().__init__()
        self.visual = encoder.visual  # so that its weights are this module's
        self._encoder = encoder
        self._kind = kind

    def forward(self, inputs: Inputs) -> Tensor:
        return self._encoder.tower(self._encoder.preprocess(inputs[FRAMES]))[self._kind]

    def examples(self, rows: int, seed: int) -> Inputs:
        side = self._encoder.image_size
        generator = torch.Generator().manual_seed(seed)
        return {FRAMES: torch.randint(0, 256, (rows, side, side, 3), dtype=torch.uint8, generator=generator)}


class TextTower(Graph):
    """Tokens of instructions in, (B, L) int64, their features out, (B, D) float32."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.model = encoder.model
        self._tokenizer = encoder.tokenizer

    def forward(self, inputs: Inputs) -> Float[Tensor, "B D"]:
        return self.model.encode_text(inputs[TOKENS]).float()

    def examples(self, rows: int, seed: int) -> Inputs:
        return {TOKENS: self._tokenizer([f"put {seed} bowls {'and more ' * i}on plate {i}" for i in range(rows)])}
