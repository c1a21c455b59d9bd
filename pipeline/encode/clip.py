"""Frozen CLIP: frames and instructions to features."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Float64, UInt8

from pipeline.config import EncoderParams
from pipeline.encode.augment import relight
from pipeline.encode.transform import Preprocess
from pipeline.encode.weights import SEEDED, activation, load_model, load_tokenizer, weights_sha256
from pipeline.errors import DataError


def pick_device(index: int = 0) -> str:
    """Return the torch device of local worker `index`: the GPUs in turn, or the CPU when there are none."""
    return f"cuda:{index % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def resolve_precision(precision: str, device: str) -> str:
    """Return "fp32" or "bf16". "auto" takes bf16 where the hardware multiplies it: elsewhere it is only slower."""
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


class ClipEncoder:
    """A CLIP model that never trains.

    Args:
        params: model, weights and precision.
        device: torch device of the image tower. Text, a few sentences in all, is encoded in fp32 on the CPU.

    Attributes:
        name: open_clip model name.
        dim: D, the width of the pooled features, the same for images and text.
        image_size: pixels; the side of what the image tower takes.
        precision: "fp32" or "bf16", of the image tower.
        identity: JSON-able; equal identities give equal features. Written into stores and policies. Holds no path.

    Raises:
        ConfigError, AssetError: see `pipeline.encode.weights.load_model`.
    """

    def __init__(self, params: EncoderParams, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.precision = resolve_precision(params.precision, device)
        model: Any = load_model(params)
        digest = weights_sha256(model)
        self._preprocess = Preprocess.from_open_clip(model.visual.preprocess_cfg)
        self._tokenizer = load_tokenizer(params.model)
        self._dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self._model = model
        # The tower moves and changes type in place; text never uses it.
        self._visual = model.visual.to(self.device, self._dtype, memory_format=torch.channels_last)
        self.name = params.model
        self.image_size = self._preprocess.size
        self.dim = int(self.text(["a"]).shape[1])
        self.identity: dict[str, Any] = {
            "library": "open_clip",
            "model": params.model,
            "pretrained": params.pretrained.replace("\\", "/").rsplit("/", 1)[-1],
            "seed": params.seed if params.pretrained == SEEDED else None,
            "weights_sha256": digest,
            "activation": activation(params.model),
            "precision": self.precision,
            "image_size": self.image_size,
            "mean": list(self._preprocess.mean),
            "std": list(self._preprocess.std),
            "dim": self.dim,
        }

    def images(self, frames: UInt8[np.ndarray, "B H W 3"]) -> Float16[np.ndarray, "B D"]:
        """Return pooled, projected, not normalised features of upright frames.

        Raises:
            DataError: frames that are not square, or features that are not finite in half precision.
        """
        return self.forward(self.prepare(frames))

    def prepare(
        self, frames: UInt8[np.ndarray, "B H W 3"], light: Float64[np.ndarray, "B 2"] | None = None
    ) -> Float[torch.Tensor, "B 3 S S"]:
        """Resize and normalise frames on the encoder's device: the part of `images` that can run ahead in a thread.

        Args:
            light: brightness and contrast factors of each frame, see `pipeline.encode.augment`.
        """
        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device, non_blocking=True)
            if light is not None:
                images = relight(images, light)
            return self._preprocess(images).to(self._dtype)

    def forward(self, images: Float[torch.Tensor, "B 3 S S"]) -> Float16[np.ndarray, "B D"]:
        """Return the features of what `prepare` gave."""
        with torch.inference_mode():
            features = self._visual(images).to(torch.float16)
        if not bool(torch.isfinite(features).all()):
            raise DataError(f"{self.name} gives features that are not finite in half precision; use another encoder")
        return features.cpu().numpy()

    def text(self, texts: list[str]) -> Float32[np.ndarray, "K D"]:
        """Return features of instructions, not normalised. Each is encoded alone: it does not depend on the others."""
        with torch.inference_mode():
            rows = [self._model.encode_text(self._tokenizer([text])) for text in texts]
            return torch.cat(rows).float().numpy()
