"""A policy with CLIP's image tower inside, which trains with it: frames in, in place of features."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.policy.normaliser import Noise


class TunedPolicy(PolicyNetwork):
    """A PolicyNetwork that takes frames (B, [L,] H, W, 3) uint8 in place of features, and computes these itself."""

    def __init__(self, arch: Architecture, visual: nn.Module, preprocess: Callable[[Tensor], Tensor]) -> None:
        super().__init__(arch)
        self.visual = visual
        self._preprocess = preprocess

    def condition(
        self,
        images: Mapping[str, UInt8[Tensor, "B *time h w 3"]],
        text: Float[Tensor, "B D"],
        proprio: Mapping[str, Tensor],
        feature_noise: Mapping[str, Noise] | None = None,
    ) -> Float[Tensor, "B W"]:
        return super().condition(self._features(images), text, proprio, feature_noise)

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

    def _features(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        def features(frames: Tensor) -> Tensor:
            found = self.visual(self._preprocess(frames.flatten(0, -4)))
            return found.unflatten(0, frames.shape[:-3])

        return {name: features(frames) for name, frames in images.items()}
