"""Frozen CLIP: frames and instructions to features."""

import contextlib
import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Float64, UInt8
from open_clip.factory import get_model_config

from pipeline.encode.augment import relight
from pipeline.encode.patches import grid_place
from pipeline.encode.preprocess import Preprocess
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.encode.weights import activation, load_model, load_tokenizer, weights_sha256
from pipeline.errors import ConfigError, DataError

CPU_BATCH = 64
UNCUT = 8  # times what a model reads, that a text is not cut off at when its tokens are counted
ACTIVATION_BYTES = 64  # of a token and channel: some ten tensors of two or four bytes live at once in a block


def pick_device(index: int = 0) -> str:
    """Return the torch device of local worker `index`: the GPUs in turn, or the CPU when there are none."""
    return f"cuda:{index % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def require_device(device: str) -> None:
    """Raise ConfigError for a torch device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"device {device}: not to be used here ({error}). Use cpu, or leave it out") from None


def resolve_precision(precision: Literal["auto", "fp32", "bf16"], device: str) -> Literal["fp32", "bf16"]:
    """Return "fp32" or "bf16". "auto" takes bf16 where the hardware multiplies it: elsewhere it is only slower."""
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def default_batch_size(model: str, device: str, rows: int) -> int:
    """Return frames per forward pass for an open_clip model on a device, where `rows` frames are to be encoded.

    On a GPU at most the power of two up to 1024 whose activations take a quarter of its memory; and such that the
    passes are of one size, since a shorter one is padded to it.
    """
    if torch.device(device).type == "cpu":
        return CPU_BATCH
    vision = (get_model_config(model) or {}).get("vision_cfg", {})
    patch = vision.get("patch_size", 16)
    tokens = (vision.get("image_size", 224) // patch) ** 2 + 1
    per_image = tokens * vision.get("width", 1024) * ACTIVATION_BYTES
    memory = torch.cuda.get_device_properties(torch.device(device)).total_memory
    most = min(1024, 2 ** int(math.log2(max(1, memory / 4 / per_image))))
    return math.ceil(rows / math.ceil(rows / most))


def declared_identity(params: EncoderParams) -> dict[str, Any]:
    """Return what of `ClipEncoder.identity` follows from the settings alone: no weights are read.

    Precision is left out if it is "auto", the size of images if open_clip does not know the model.
    """
    size = (get_model_config(params.model) or {}).get("vision_cfg", {}).get("image_size")
    return {
        "library": "open_clip",
        **params.identity,
        "activation": activation(params.model),
        **({"image_size": size} if size else {}),
    }


class ClipEncoder:
    """A CLIP model that never trains.

    Args:
        params: model, weights and precision.
        device: torch device of the image tower. Text, a few sentences in all, is encoded in fp32 on the CPU.
        grid: patch tokens to give beside the pooled features, from the same forward pass.
        batch_size: on a GPU, compile the tower for batches of this size, and pad shorter ones to it. None compiles
            nothing, as does a CPU.

    Attributes:
        name: open_clip model name.
        dim: D, the width of the pooled features, the same for images and text.
        device_name: "cpu", or the name of the GPU.
        tokens: (P, W) of the grid, None without one.
        image_size: pixels; the side of what the image tower takes.
        precision: "fp32" or "bf16", of the image tower.
        preprocess: what frames pass before the image tower.
        model: open_clip's, whose text tower is used in fp32 on the CPU; visual: its image tower.
        tokenizer: of the text tower.
        identity: JSON-able; equal identities give equal features. Written into stores and policies. Holds no path.

    Raises:
        ConfigError, AssetError: see `pipeline.encode.weights.load_model`. Also a ConfigError: a grid that the model
            cannot give.
    """

    tokens: tuple[int, int] | None = None

    def __init__(
        self,
        params: EncoderParams,
        device: str = "cpu",
        grid: GridParams | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        self.precision = resolve_precision(params.precision, device)
        model: Any = load_model(params)
        digest = weights_sha256(model)
        self.preprocess = Preprocess.from_open_clip(model.visual.preprocess_cfg)
        self.tokenizer = load_tokenizer(params.model)
        self._dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.model = model
        # The tower moves and changes type in place; text never uses it.
        self.visual = model.visual.to(self.device, self._dtype, memory_format=torch.channels_last)
        if grid:
            self._layer, self._pool, width = grid_place(self.visual, params.model, grid)
            self.tokens = (grid.size**2, width)
        self._batch_size = batch_size if self.device.type == "cuda" else None
        # Not max-autotune: what it picks depends on timing, and so would the last bits.
        self._run = torch.compile(self.tower, dynamic=False) if self._batch_size else self.tower
        self.name = params.model
        self.image_size = self.preprocess.size
        self.dim = int(self.text(["a"]).shape[1])
        self.identity: dict[str, Any] = {
            **declared_identity(params),
            "weights_sha256": digest,
            "precision": self.precision,
            "image_size": self.image_size,
            "mean": list(self.preprocess.mean),
            "std": list(self.preprocess.std),
            "dim": self.dim,
        }

    def replace_tower(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give the image tower other weights, under open_clip's names: those of a policy trained through CLIP.

        The identity stays that of the encoder which was tuned.

        Raises:
            DataError: they are not of this model.
        """
        try:
            self.visual.load_state_dict(weights)
        except RuntimeError as error:
            raise DataError(f"the policy's image tower is not one of {self.name}: {error}") from None

    def with_tower(self, weights: Mapping[str, torch.Tensor]) -> "ClipEncoder":
        """Return an encoder that differs by `replace_tower` alone; this one stays as it is. Raises DataError."""
        other = copy.copy(self)
        other.visual = copy.deepcopy(self.visual)
        other.replace_tower(weights)
        other._run = torch.compile(other.tower, dynamic=False) if self._batch_size else other.tower
        return other

    def images(self, frames: UInt8[np.ndarray, "B H W 3"]) -> Float16[np.ndarray, "B D"]:
        """Return pooled, projected, not normalised features of upright frames.

        Raises:
            DataError: frames that are not square, or features that are not finite in half precision.
        """
        return self.forward(self.prepare(frames))["image"]

    def prepare(
        self, frames: UInt8[np.ndarray, "B H W 3"], light: Float64[np.ndarray, "B 2"] | None = None
    ) -> Float[torch.Tensor, "B 3 S S"]:
        """Resize and normalise frames on the encoder's device: the part of `images` that can run ahead in a thread.

        Args:
            light: brightness and contrast factors of each frame, see `pipeline.encode.augment`.
        """
        with torch.inference_mode(), self._on_device():
            images = torch.from_numpy(np.ascontiguousarray(frames))
            if self.device.type == "cuda":  # only a copy from pinned memory leaves this thread free to go on
                images = images.pin_memory().to(self.device, non_blocking=True)
            if light is not None:
                images = relight(images, light)
            return self.preprocess(images).to(self._dtype)

    def forward(self, images: Float[torch.Tensor, "B 3 S S"]) -> dict[str, np.ndarray]:
        """Return the features of what `prepare` gave: "image" (B, D) and, with a grid, "grid" (B, P, W), float16.

        Raises:
            DataError: features that are not finite in half precision.
        """
        return self.submit(images)()

    def submit(self, images: Float[torch.Tensor, "B 3 S S"]) -> Callable[[], dict[str, np.ndarray]]:
        """Start a forward pass; the function returned waits for it and gives what `forward` gives.

        On a GPU this returns at once, so that several passes can be queued there. On a CPU it computes.
        """
        done = None
        with torch.inference_mode(), self._on_device():
            outputs = self.features(images)
            features = {kind: x.to("cpu", non_blocking=True) for kind, x in outputs.items()}  # into pinned memory
            if self.device.type == "cuda":
                done = torch.cuda.Event()
                done.record(torch.cuda.current_stream(self.device))

        def wait() -> dict[str, np.ndarray]:
            if done is not None:
                done.synchronize()
            found = {kind: x.numpy() for kind, x in features.items()}
            if not all(np.isfinite(x).all() for x in found.values()):
                raise DataError(f"{self.name} gives features that are not finite in half precision; use another one")
            return found

        return wait

    def features(self, images: Float[torch.Tensor, "B 3 S S"]) -> dict[str, Float16[torch.Tensor, "B ..."]]:
        """Return what `forward` gives on the encoder's device, as soon as it is queued there: nothing is checked."""
        rows = len(images)
        with torch.inference_mode(), self._on_device():
            if self._batch_size and rows < self._batch_size:
                images = torch.nn.functional.pad(images, (0,) * 7 + (self._batch_size - rows,))
                images = images.contiguous(memory_format=torch.channels_last)
            return {kind: x[:rows].to(torch.float16) for kind, x in self._run(images).items()}

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Make the encoder's GPU this thread's: pinned memory and kernels would open a context on the first one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def tower(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features of preprocessed images, "image" (B, D) and, with a grid, "grid" (B, P, W)."""
        if self.tokens is None:
            return {"image": self.visual(images)}
        found = self.visual.forward_intermediates(images, indices=[self._layer])
        patches = found["image_intermediates"][0].float()  # (B, W, side, side)
        grid = torch.nn.functional.avg_pool2d(patches, self._pool)
        return {"image": found["image_features"], "grid": grid.flatten(2).transpose(1, 2)}

    def text(self, texts: list[str]) -> Float32[np.ndarray, "K D"]:
        """Return features of instructions, not normalised. Each is encoded alone: it does not depend on the others.

        Raises:
            DataError: a text is longer than the model reads.
        """
        for text in texts:
            self._check_length(text)
        with torch.inference_mode():
            rows = [self.model.encode_text(self.tokenizer([text])) for text in texts]
            return torch.cat(rows).float().numpy()

    def _check_length(self, text: str) -> None:
        """Refuse a text whose end the tokenizer would cut off without a word."""
        context = self.tokenizer.context_length
        read, whole = self._tokens(text, context), self._tokens(text, UNCUT * context)
        if read != whole:
            ends = len(self._tokens("", context))
            raise DataError(
                f"{self.name} reads texts of {len(read) - ends} tokens, and this one has {len(whole) - ends}: "
                f"{text!r}. Shorten it"
            )

    def _tokens(self, text: str, context_length: int) -> list[int]:
        """Return the tokens of a text, by any of open_clip's tokenizers: without the padding, wherever that is."""
        nothing, tokens = (self.tokenizer([said], context_length=context_length)[0] for said in ("", text))
        padding = nothing.mode().values
        return tokens[tokens != padding].tolist()
