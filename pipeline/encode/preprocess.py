"""What CLIP is fed: upright frames (see `pipeline.libero.conventions`), resized and normalised.

Embedding, training and rollout all go through here, so that a frame is never seen in two ways.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8

from pipeline.errors import DataError

TRANSFORM_ID = "vertical-flip/bicubic-antialias-uint8/v1"
"""Name of what `conventions.upright` and `Preprocess` do; written into stores and policies, to be changed with them.

Size, mean and standard deviation belong to the encoder, whose identity is recorded beside it.
"""


@dataclass(frozen=True)
class Preprocess:
    """uint8 frames to a CLIP model's input, on tensors, as open_clip's own PIL transform does it.

    Args:
        size: pixels of the square image that the model takes.
        mean: per channel, of images in [0, 1].
        std: likewise.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_open_clip(cls, cfg: dict[str, Any]) -> "Preprocess":
        """Read `model.visual.preprocess_cfg`.

        Raises:
            DataError: the model wants something other than a square, bicubic image.
        """
        size = cfg["size"]
        if isinstance(size, (tuple, list)):
            if len(set(size)) != 1:
                raise DataError(f"the encoder takes {size[0]}x{size[1]} images; only square ones are supported")
            size = size[0]
        if cfg.get("interpolation", "bicubic") != "bicubic":
            raise DataError(f"the encoder wants {cfg['interpolation']!r} interpolation; only 'bicubic' is supported")
        return cls(int(size), tuple(cfg["mean"]), tuple(cfg["std"]))

    def __call__(self, frames: UInt8[torch.Tensor, "B H W 3"]) -> Float[torch.Tensor, "B 3 S S"]:
        """Resize and normalise upright frames, on the device where they lie.

        Returns:
            float32, channels-last in memory.

        Raises:
            DataError: frames that are not square. open_clip would crop them, silently.
        """
        height, width = frames.shape[1:3]
        if height != width:
            raise DataError(f"frames are {height}x{width}; the transform takes square ones, as LIBERO renders them")
        images = _resize(frames.permute(0, 3, 1, 2), self.size)
        images = images.float()
        # Filled there: a copy from the host would wait for what the GPU is computing.
        mean, std = (torch.cat([images.new_full((1, 1, 1, 1), x) for x in each], 1) for each in (self.mean, self.std))
        return images.div_(255).sub_(mean).div_(std)


def _resize(images: UInt8[torch.Tensor, "B 3 H W"], size: int) -> torch.Tensor:
    """Bicubic as Pillow has it: antialias=True takes the kernel a=-0.5, also when enlarging; without it, a=-0.75.

    Pillow rounds to bytes, so both branches do: the CPU's integer kernel by itself, the GPU's float one by hand.
    """
    if images.shape[-1] == size:
        return images
    if images.device.type == "cpu":
        return _interpolate(images, size)
    return _resize_float(images, size)


def _resize_float(images: UInt8[torch.Tensor, "B 3 H W"], size: int) -> torch.Tensor:
    return _interpolate(images.float(), size).round_().clamp_(0, 255)


def _interpolate(images: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(
        images, size=(size, size), mode="bicubic", align_corners=False, antialias=True
    )
