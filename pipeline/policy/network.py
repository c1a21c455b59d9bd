"""The trainable policy: normaliser, fusion and action head in one module, and the description it is built from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.policy.diffusion import Diffusion
from pipeline.policy.flow import RectifiedFlow
from pipeline.policy.fusion import PROPRIO_DIMS, Fusion, Inputs
from pipeline.policy.head import Head
from pipeline.policy.keyframes import Keyframes
from pipeline.policy.normaliser import Noise, Normaliser
from pipeline.policy.regression import Cvae, Regression
from pipeline.policy.settings import HEADS_IN_STEPS, PolicyParams
from pipeline.policy.tokens import ActionTokens
from pipeline.policy.velocity import MlpVelocity, ResidualVelocity

ACTION_DIM = 7  # LIBERO's [dx, dy, dz, dax, day, daz, gripper]; `Architecture.action_dim` is a policy's own


@dataclass(frozen=True)
class Architecture(PolicyParams):
    """All that it takes to build the network again: the settings, and the sizes of the features.

    Attributes:
        patches: P, patch tokens of a frame; None: its pooled feature.
        image_dim: of a patch token or of the pooled feature.
        text_dim: of an instruction's feature.
        widths: of each of `proprio`, in their order; (): LIBERO's.
        bounds: least and greatest value of each component of an action, those of the demonstrations; (): LIBERO's seven
            in [-1, 1].
    """

    patches: int | None
    image_dim: int
    text_dim: int
    widths: tuple[int, ...] = ()
    bounds: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(
        cls,
        policy: PolicyParams,
        image_dim: int,
        text_dim: int,
        patches: int | None = None,
        widths: tuple[int, ...] = (),
        bounds: tuple[tuple[float, float], ...] = (),
    ) -> "Architecture":
        """Return what `policy` builds on features of these sizes; `patches` are those that the store has."""
        used = patches if policy.features == "grid" else None
        values: dict[str, Any] = {field.name: getattr(policy, field.name) for field in fields(PolicyParams)}
        values |= {"patches": used, "image_dim": image_dim, "text_dim": text_dim, "widths": widths, "bounds": bounds}
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; from_json is the way back. What is LIBERO's, of every robot's own, is left out."""
        values = {k: _plain(v) for k, v in asdict(self).items()}
        return {k: v for k, v in values.items() if v or k not in ("widths", "bounds")}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Architecture":
        """Build from to_json's mapping. Raises TypeError for missing or unknown keys."""
        return cls(**{k: _frozen(v) for k, v in tree.items()})

    @property
    def proprio_dims(self) -> dict[str, int]:
        """Width of each of `proprio`."""
        widths = self.widths or tuple(PROPRIO_DIMS[name] for name in self.proprio)
        return dict(zip(self.proprio, widths, strict=True))

    @property
    def action_dim(self) -> int:
        """A: components of an action."""
        return len(self.bounds) or ACTION_DIM

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one row's features of a camera, ([L,] [P,] D): L observations, P patches of a grid."""
        return (*((self.n_obs_steps,) if self.n_obs_steps > 1 else ()), *self.frame_shape)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame's features: ([P,] D)."""
        return (*((self.patches,) if self.patches else ()), self.image_dim)


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


class PolicyNetwork(nn.Module):
    """Cached features in, actions out.

    images: camera -> (B, D) raw pooled CLIP features, or (B, P, D) patch tokens; text: (B, D); proprio: name -> (B, k)
    in metres, radians and quaternions; with L > 1 observations both have an axis of them after B, oldest first.
    actions: (B, H, A) in the environment's units: LIBERO's seven, in [-1, 1], or those of the robot that was learnt
    from, within `Architecture.bounds`.
    """

    limits: Tensor

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.normaliser = Normaliser(
            dict.fromkeys(arch.cameras, arch.frame_shape),
            arch.proprio_dims,
            arch.action_dim,
            arch.standardise_actions,
            arch.bounds,
        )
        limits = torch.tensor(arch.bounds or ((-1.0, 1.0),) * ACTION_DIM, dtype=torch.float32).T
        self.register_buffer("limits", limits.contiguous(), persistent=False)
        self.fusion = make_fusion(arch)
        self.head = make_head(arch)
        self.keyframes: Keyframes | None = None  # training adds it

    def forward(
        self,
        images: Mapping[str, Tensor],
        text: Float[Tensor, "B D"],
        proprio: Mapping[str, Tensor],
        actions: Float[Tensor, "B H A"],
        noise: Float[Tensor, "B H A"],
        u: Float[Tensor, " B"],
        feature_noise: Mapping[str, Noise] | None = None,
        keyframes: Float[Tensor, "B 6"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Return each row's loss (see `Head`), and what it misses the keyframes by, if they are given.

        `feature_noise` is added to the standardised image features.
        """
        condition = self.condition(images, text, proprio, feature_noise)
        loss = self.head.loss(self.normaliser.action(actions), condition, noise, u)
        return loss if keyframes is None or self.keyframes is None else loss + self.keyframes.loss(condition, keyframes)

    @torch.no_grad()
    def act(
        self,
        images: Mapping[str, Tensor],
        text: Float[Tensor, "B D"],
        proprio: Mapping[str, Tensor],
        noise: Float[Tensor, "B H A"],
        steps: int | None = None,
    ) -> Float[Tensor, "B H A"]:
        """Return actions for the environment, clipped; `steps` defaults to the policy's sampling_steps."""
        return self.actions(
            self.head.sample(self.condition(images, text, proprio), noise, steps or self.arch.sampling_steps)
        )

    def actions(self, chunk: Float[Tensor, "B H A"]) -> Float[Tensor, "B H A"]:
        """Return what the head has sampled in the environment's units, clipped to their range."""
        return self.normaliser.action.inverse(chunk).clamp(self.limits[0], self.limits[1])

    def propose(
        self,
        images: Mapping[str, Tensor],
        text: Float[Tensor, "B D"],
        proprio: Mapping[str, Tensor],
        noise: Float[Tensor, "B H A"],
        steps: int | None = None,
    ) -> Float[Tensor, "B H A"]:
        """Return actions in the environment's units before they are clipped."""
        condition = self.condition(images, text, proprio)
        return self.normaliser.action.inverse(self.head.sample(condition, noise, steps or self.arch.sampling_steps))

    @torch.no_grad()
    def straightness(
        self,
        images: Mapping[str, Tensor],
        text: Float[Tensor, "B D"],
        proprio: Mapping[str, Tensor],
        noise: Float[Tensor, "B H A"],
    ) -> Float[Tensor, " B"] | None:
        """Return how far from straight a flow's paths are (see `RectifiedFlow.straightness`); None of other heads."""
        if not isinstance(self.head, RectifiedFlow):
            return None
        return self.head.straightness(self.condition(images, text, proprio), noise)

    def condition(
        self,
        images: Mapping[str, Tensor],
        text: Tensor,
        proprio: Mapping[str, Tensor],
        feature_noise: Mapping[str, Noise] | None = None,
    ) -> Float[Tensor, "B W"]:
        """Return what the head is conditioned on: the observation and the instruction, standardised and fused."""
        images, text, proprio = self.normaliser.inputs(images, text, proprio, feature_noise)
        rows, n_obs_steps = text.shape[0], self.arch.n_obs_steps  # an export keeps shape[0] open, and fixes len()
        return self.fusion(
            {name: x.reshape(rows, n_obs_steps, -1, self.arch.image_dim) for name, x in images.items()},
            text,
            {name: x.reshape(rows, n_obs_steps, -1) for name, x in proprio.items()},
        )

    def parameter_counts(self) -> dict[str, int]:
        """Return trainable parameters of what acts, by component, named as in the reference's table."""

        def count(module: nn.Module) -> int:
            return sum(p.numel() for p in module.parameters() if p.requires_grad)

        counts = {name: count(module) for name, module in self.fusion.encoders.items()}
        counts["fusion"] = count(self.fusion) - sum(counts.values())
        counts["velocity"] = count(self.head)
        counts["total"] = count(self) - (count(self.keyframes) if self.keyframes else 0)
        return counts


def make_fusion(arch: Architecture) -> Fusion:
    """Return the fusion of these inputs."""
    sizes = (arch.patches or 1, arch.image_dim, arch.text_dim)
    inputs = Inputs(arch.cameras, arch.proprio, arch.n_obs_steps, *sizes, arch.proprio_dims)
    return Fusion(inputs, arch.condition_dim, arch.token_width)


def make_head(arch: Architecture) -> Head:
    """Return the action head that `arch` names.

    A new one is plugged in here; its name is in `policy.settings.HeadName`.
    """
    if arch.head in HEADS_IN_STEPS:
        network = {"mlp": MlpVelocity, "residual": ResidualVelocity}[arch.head_network]
        velocity = network(
            arch.horizon, arch.action_dim, arch.condition_dim, arch.head_width, arch.head_layers, arch.time_dim
        )
        if arch.head == "flow":
            return RectifiedFlow(velocity)
        if arch.head == "diffusion":
            return Diffusion(velocity)
    sizes = (arch.horizon, arch.action_dim, arch.condition_dim, arch.head_width, arch.head_layers)
    if arch.head == "cvae":
        return Cvae(*sizes)
    if arch.head == "tokens":
        return ActionTokens(*sizes)
    if arch.head in ("l1", "l2"):
        return Regression(*sizes, power=1 if arch.head == "l1" else 2)
    raise ValueError(f"no head is made for {arch.head!r}: plug it in here")
