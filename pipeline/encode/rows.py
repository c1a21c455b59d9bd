"""Demonstrations to rows of the embedding store: frames through CLIP, observations paired with actions."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from cache.units import Unit
from pipeline.compute import worker_index
from pipeline.config import EncoderParams
from pipeline.encode.clip import ClipEncoder, pick_device
from pipeline.errors import AssetError

Read = Callable[[Any, tuple[str, ...], int, int], dict[str, Any]]
"""read(payload, cameras, start, stop), as pipeline.libero.demonstrations.read gives it."""
T = TypeVar("T")
READ_AHEAD = 2
LOWDIM = ("joint_pos", "ee_pose", "gripper")
ACTIONS = ("action", "expert_action")


@runtime_checkable
class FrameEncoder(Protocol):
    """What an Embedder needs of an encoder; `pipeline.encode.clip.ClipEncoder` is one."""

    dim: int

    def prepare(self, frames: np.ndarray) -> torch.Tensor:
        """Frames to model input, in the reading thread."""

    def forward(self, images: torch.Tensor) -> np.ndarray:
        """Model input to (B, D) float16 features."""


@lru_cache(maxsize=1)
def shared_encoder(params: EncoderParams, device: str) -> ClipEncoder:
    """Return the process's encoder: planning and a serial build share one."""
    return ClipEncoder(params, device)


@dataclass(frozen=True)
class MakeRows:
    """Makes a worker's Embedder; small, and pickles.

    Attributes:
        encoder: with a precision that is not "auto": workers must not choose.
        identity: that the encoder must have on every worker.
        read: reads a slice of one demonstration.
        cameras: to encode.
        obs_shift: 1 pairs obs[t] with action[t + 1], since LIBERO records an observation after its action; 0 does not.
        batch_size: frames per forward pass.
        expert_action: the demonstrations have the expert's noise-free actions, and they are stored.
    """

    encoder: EncoderParams
    identity: dict[str, Any]
    read: Read
    cameras: tuple[str, ...]
    obs_shift: int
    batch_size: int
    expert_action: bool

    def __call__(self) -> "Embedder":
        """Return the embedder, on this worker's device.

        Raises:
            AssetError: the weights on this machine are not those the build was planned with.
        """
        encoder = shared_encoder(self.encoder, pick_device(worker_index()))
        if encoder.identity != self.identity:
            different = [key for key, value in self.identity.items() if encoder.identity.get(key) != value]
            raise AssetError(
                f"embed.encoder: a worker's encoder differs in {', '.join(different)} from the one the build was "
                f"planned with ({encoder.identity[different[0]]}, not {self.identity[different[0]]}). "
                "Give all machines the same files and library versions."
            )
        return Embedder(self, encoder)


class Embedder:
    """Computes the rows of a unit. What a batch holds is a function of the unit alone, and so are the bytes."""

    def __init__(self, spec: MakeRows, encoder: FrameEncoder) -> None:
        self._spec = spec
        self._encoder = encoder

    def __call__(self, unit: Unit) -> dict[str, np.ndarray]:
        """Return field name -> (unit.rows, ...): image/<camera> (n, 1, D) float16, lowdim/<name> (n, k) float32."""
        out = {
            f"image/{camera}": np.empty((unit.rows, 1, self._encoder.dim), np.float16) for camera in self._spec.cameras
        }
        signals: list[dict[str, np.ndarray]] = []
        for camera, start, content in ahead(self._batches(unit), READ_AHEAD):
            if camera is None:
                signals.append(content)
            else:
                features = self._encoder.forward(content)
                out[f"image/{camera}"][start : start + len(features), 0] = features
        for name in signals[0]:
            out[f"lowdim/{name}"] = np.concatenate([piece[name] for piece in signals])
        return out

    def _batches(self, unit: Unit) -> Iterator[tuple[str | None, int, Any]]:
        """Yield (camera, first row, prepared frames), and (None, 0, low-dimensional rows) for each piece read."""
        start = 0
        frames: dict[str, list[np.ndarray]] = {camera: [] for camera in self._spec.cameras}
        held = 0
        for piece in self._pieces(unit):
            yield None, 0, piece["lowdim"]
            held += len(piece["lowdim"]["action"])
            for camera in self._spec.cameras:
                frames[camera].append(piece["images"][camera])
            if held == self._spec.batch_size or start + held == unit.rows:
                for camera in self._spec.cameras:
                    yield camera, start, self._prepare(frames[camera])
                    frames[camera] = []
                start, held = start + held, 0

    def _prepare(self, frames: list[np.ndarray]) -> torch.Tensor:
        return self._encoder.prepare(np.concatenate(frames))

    def _pieces(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """Read the unit in pieces that end where a batch or an episode does."""
        shift, size = self._spec.obs_shift, self._spec.batch_size
        done = 0
        for segment in unit.segments:
            low = segment.start
            while low < segment.stop:
                high = min(segment.stop, low + size - done % size)
                yield self._pair(self._spec.read(segment.payload, self._spec.cameras, low, high + shift), high - low)
                done, low = done + high - low, high

    def _pair(self, raw: dict[str, Any], rows: int) -> dict[str, Any]:
        """Pair observation t with action t + obs_shift; `raw` holds rows + obs_shift time steps."""
        lowdim = {name: raw[name][:rows] for name in LOWDIM}
        for name in ACTIONS if self._spec.expert_action else ACTIONS[:1]:
            lowdim[name] = raw[name][self._spec.obs_shift :]
        images = {camera: raw["images"][camera][:rows] for camera in self._spec.cameras}
        return {"images": images, "lowdim": lowdim}


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield the items of an iterator that runs in a thread, at most `depth` items ahead. Its errors are raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put((True, item))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        stopped.set()
        thread.join()
