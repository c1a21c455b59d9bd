"""An exported policy, run by ONNX Runtime: what acts is what `Policy` is, without torch, open_clip or the store.

    policy = OnnxPolicy.load("runs/flow/onnx")
    policy.reset(seed=0)
    actions = policy.act({"agentview": rgb, ...}, "pick up the black bowl")

Needs numpy, onnxruntime and pillow only; for a policy with depth cameras jaxtyping, too.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import ConfigError, DataError
from pipeline.inference import manifest
from pipeline.inference.base import BasePolicy
from pipeline.inference.observation import centre_crop
from pipeline.inference.tokenizer import BytePairs


class OnnxPolicy(BasePolicy):
    """A policy as `stages.export_onnx` wrote it; see `BasePolicy` for what it takes and does.

    Noise comes from NumPy's generator, so that it is other noise than torch's of the same seed, from the same
    distribution. To compare the two give `noise` by hand.

    Args:
        folder: of the export.
        threads: for each graph; None: all cores.
        int8: take the image tower in 8 bits.
        n_action_steps: actions of a chunk that are carried out between two observations; None: the policy's own number.

    Attributes:
        noise_shape: (H, A).
        sim: how the pictures were drawn that the policy learnt from; {} where that is not known.

    Raises:
        DataError: a file is missing, damaged, or of another policy.
        ConfigError: action steps that the policy can't have.
    """

    def __init__(
        self, folder: Path, threads: int | None = None, int8: bool = False, n_action_steps: int | None = None
    ) -> None:
        self._folder = folder
        self._tree = manifest.read(folder)
        self._threads = threads or _cores()
        self.sim: dict[str, Any] = self._tree["policy"]["sim"]
        self._size = int(self._tree["preprocessing"]["size"])
        self._known = {text: np.array([row], np.float32) for text, row in self._tree["instructions"].items()}
        for name in self._tree["files"]:
            if (folder / name).exists():  # damage is told now, and not in the middle of an episode
                manifest.content(folder, self._tree, name)
        self._policy = self._session(manifest.POLICY)
        self._image = self._session(manifest.IMAGE_INT8 if int8 else manifest.IMAGE)
        self._tower: tuple[Any, BytePairs] | None = None  # of texts; read when an instruction is not known
        super().__init__(self._tree["describe"], n_action_steps)
        self.noise_shape = (self.horizon, self.action_dim)

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | None = None,
        threads: int | None = None,
        int8: bool = False,
        n_action_steps: int | None = None,
    ) -> "OnnxPolicy":
        """Read the export at `source`; see the class for the arguments. Raises also ConfigError for another device."""
        if device not in (None, "cpu"):
            raise ConfigError(f"device {device!r}: an exported policy runs on the CPU here. Use cpu, or leave it out")
        return cls(Path(source), threads, int8, n_action_steps)

    def describe(self) -> dict[str, Any]:
        """Return what the policy takes and gives, as plain JSON values, and whose export it is."""
        digests = {"policy": self._tree["policy"]["weights_sha256"], "encoder": self._tree["encoder"]["weights_sha256"]}
        return {**super().describe(), "weights_sha256": digests, "steps": self._tree["policy"]["steps"]}

    def pixels(self, frames: np.ndarray) -> np.ndarray:
        """Return frames (B, H, W, 3) uint8 as the image tower takes them, (B, S, S, 3) uint8: cropped and resized."""
        square = np.ascontiguousarray(centre_crop(frames))
        if square.shape[1] == self._size:
            return square
        wanted = (self._size, self._size)
        return np.stack([np.asarray(Image.fromarray(x).resize(wanted, Image.Resampling.BICUBIC)) for x in square])

    def encode(self, observations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what policy.onnx takes of a sound batch (B, ...): features of images, and the signals, float32."""
        pixels = np.concatenate([self.pixels(observations[camera]) for camera in self.cameras])
        (features,) = self._image.run(None, {"frames": pixels})
        # As the store has them, and every policy of this project is trained on them.
        rounded = features.astype(np.float16).astype(np.float32)
        if not np.isfinite(rounded).all():
            raise DataError(f"{manifest.IMAGE} gives features that are not finite in half precision")
        images = dict(zip(self.cameras, np.split(rounded, len(self.cameras)), strict=True))
        return images | {name: observations[name] for name in self.signals}

    def _chunks(self, encoded: Mapping[str, np.ndarray], texts: Sequence[np.ndarray], noise: np.ndarray) -> np.ndarray:
        given = {**encoded, "text": np.concatenate(texts), "noise": noise}
        return self._policy.run(None, {each.name: given[each.name] for each in self._policy.get_inputs()})[0]

    def _seeded(self, seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    def _draw(self, generator: np.random.Generator) -> np.ndarray:
        return generator.standard_normal((1, self.horizon, self.action_dim), np.float32)

    def _session(self, name: str) -> Any:
        return manifest.session(manifest.content(self._folder, self._tree, name), self._threads)

    def _features_of(self, instruction: str) -> np.ndarray:
        """Return the export's features of an instruction, or those of the text tower for one that it does not know."""
        if (known := self._known.get(instruction)) is not None:
            return known
        about = self._tree["tokenizer"]
        if about is None:
            names = "; ".join(repr(each) for each in self._known)
            raise DataError(
                f"the instruction {instruction!r} is not one of those that the export holds, and it holds no tokenizer "
                f"for others. Known: {names}. Add it: python -m stages.export_onnx --instruction {instruction!r}"
            )
        if self._tower is None:
            merges = manifest.content(self._folder, self._tree, about["file"]).decode().splitlines()
            self._tower = self._session(manifest.TEXT), BytePairs(merges, about["length"])
        session, tokenizer = self._tower
        # As `ClipEncoder.text` does: the end would be cut off without a word.
        if (tokens := len(tokenizer.encode(instruction))) > (most := about["length"] - 2):
            name = self._tree["encoder"]["model"]
            raise DataError(
                f"{name} reads texts of {most} tokens, and this one has {tokens}: {instruction!r}. Shorten it"
            )
        return session.run(None, {"tokens": tokenizer([instruction])})[0]


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
