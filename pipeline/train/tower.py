"""Training through CLIP: raw frames in, the image tower tuned with the policy, by LoRA or whole.

The rest is as with cached features: the same table, fusion and heads, the same loop. The store is still needed: it says
which frames are rows, holds the low-dimensional arrays and the instructions' features, which stay as they are, and its
features give the normaliser's statistics.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.config import TrainFlow
from pipeline.encode.transform import Preprocess
from pipeline.policy.network import Architecture, FlowPolicy
from pipeline.policy.normaliser import Noise
from pipeline.train.images import Features, ResidentImages


class TunedPolicy(FlowPolicy):
    """A FlowPolicy that takes frames (B, [L,] H, W, 3) uint8 in place of features, and computes these itself."""

    def __init__(self, arch: Architecture, visual: nn.Module, preprocess: Preprocess) -> None:
        super().__init__(arch)
        self.visual = visual
        self._preprocess = preprocess

    def _condition(
        self,
        images: Mapping[str, UInt8[Tensor, "B *look h w 3"]],
        text: Float[Tensor, "B D"],
        proprio: Mapping[str, Tensor],
        feature_noise: Mapping[str, Noise] | None = None,
    ) -> Float[Tensor, "B W"]:
        return super()._condition(self._features(images), text, proprio, feature_noise)

    def parameter_counts(self) -> dict[str, int]:
        """Return trainable parameters by component, those of the image tower as "encoder"."""
        counts = super().parameter_counts()
        tuned = sum(p.numel() for p in self.visual.parameters() if p.requires_grad)
        return {"encoder": tuned, **counts}

    def tower(self) -> dict[str, Tensor]:
        """Return the image tower's weights under open_clip's names, with what LoRA learnt added to them."""
        visual: Any = self.visual
        if hasattr(visual, "merge_and_unload"):  # peft's, which takes seconds to import
            visual = copy.deepcopy(visual).merge_and_unload()
        return visual.state_dict()

    def _features(self, images: Mapping[str, Tensor]) -> Features:
        def features(frames: Tensor) -> Tensor:
            found = self.visual(self._preprocess(frames.flatten(0, -4)))
            return found.unflatten(0, frames.shape[:-3])

        return {name: features(frames) for name, frames in images.items()}


def parameter_groups(network: FlowPolicy, cfg: TrainFlow) -> list[dict[str, Any]]:
    """Return what the optimiser is to train: the policy, and the image tower at a rate of its own, if there is one."""
    own: list[nn.Parameter] = []
    tower: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (tower if name.startswith("visual.") else own).append(parameter)
    return [{"params": own}, *([{"params": tower, "lr": cfg.encoder.learning_rate}] if tower else [])]


@dataclass(frozen=True)
class Tower:
    """What training through CLIP adds: the tower, prepared for it, and the frames of the table's rows."""

    visual: nn.Module
    preprocess: Preprocess
    frames: ResidentImages
