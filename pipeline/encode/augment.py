"""Augmented views: a frame once more, in other light, before CLIP sees it.

How a view is lit depends on what is shown and on nothing else: not on the shard, the batch or the worker.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8

AUGMENT_ID = "brightness-contrast/v2"
"""Name of what `Views.factors` and `relight` do; written into stores with more than one view."""
GREY = (0.2989, 0.587, 0.114)  # torchvision's weights, so that contrast means the same


@dataclass(frozen=True)
class Views:
    """How many views there are of each frame, and how those after the first differ from it.

    Attributes:
        count: V; view 0 is the frame as it is.
        brightness, contrast: as in torchvision's ColorJitter: factors are uniform in [max(0, 1 - x), 1 + x].
    """

    count: int
    brightness: float
    contrast: float

    def identity(self) -> dict[str, Any]:
        """Return what goes into a store's identity: settings that have no effect are left out."""
        if self.count == 1:
            return {"views": 1}
        light = {"id": AUGMENT_ID, "brightness": self.brightness, "contrast": self.contrast}
        return {"views": self.count, "augment": light}

    def factors(self, digest: str, start: int, stop: int, camera: str, view: int) -> Float64[np.ndarray, "n 2"]:
        """Return the brightness and contrast factors of rows `start:stop` of the episode with this digest."""
        names = [f"{digest}/{row}/{camera}/{view}" for row in range(start, stop)]
        words = np.frombuffer(b"".join(hashlib.sha256(name.encode()).digest()[:16] for name in names), "<u8")
        uniform = (words >> np.uint64(11)).reshape(-1, 2) * 2.0**-53
        reach = np.array([self.brightness, self.contrast])
        low = np.maximum(0, 1 - reach)
        return low + uniform * (1 + reach - low)


def relight(
    frames: UInt8[torch.Tensor, "B H W 3"], factors: Float64[np.ndarray, "B 2"]
) -> UInt8[torch.Tensor, "B H W 3"]:
    """Change brightness, then contrast, each frame by its own factors, as torchvision does it on bytes."""
    brightness, contrast = (factors[:, i] for i in range(2))
    bright = _blend(frames, torch.zeros((), device=frames.device), brightness)
    red, green, blue = (bright[..., i] for i in range(3))
    grey = (GREY[0] * red + GREY[1] * green + GREY[2] * blue).to(torch.uint8)
    return _blend(bright, grey.float().mean((1, 2)).view(-1, 1, 1, 1), contrast)


def _blend(frames: torch.Tensor, other: torch.Tensor, share: np.ndarray) -> torch.Tensor:
    shares = torch.from_numpy(np.stack([share, 1 - share]).astype(np.float32))
    if frames.is_cuda:  # only a copy from pinned memory does not wait for what the GPU is computing
        shares = shares.pin_memory().to(frames.device, non_blocking=True)
    of_frames, of_other = shares.view(2, -1, 1, 1, 1)
    mixed = of_frames * frames + of_other * other
    return mixed.clamp_(0, 255).to(torch.uint8)
