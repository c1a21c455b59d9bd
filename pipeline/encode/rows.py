"""Demonstrations to rows of the embedding store: frames through CLIP, observations paired with actions."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from cache.schema import Field
from cache.units import Segment, Unit
from pipeline.compute import worker_index
from pipeline.config import EncoderParams, GridParams
from pipeline.encode.augment import Views
from pipeline.encode.clip import ClipEncoder, pick_device
from pipeline.errors import AssetError

Read = Callable[[Any, tuple[str, ...], int, int], dict[str, Any]]
"""read(payload, cameras, start, stop), as pipeline.libero.demonstrations.read gives it."""
T = TypeVar("T")
READ_AHEAD = 2
ACTIONS = ("action", "expert_action")


@runtime_checkable
class FrameEncoder(Protocol):
    """What an Embedder needs of an encoder; `pipeline.encode.clip.ClipEncoder` is one."""

    def prepare(self, frames: np.ndarray, light: np.ndarray | None) -> torch.Tensor:
        """Frames to model input, in the reading thread; `light` is as `Views.factors` gives it."""

    def forward(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """Model input to features of each kind of field: "image" (B, D), "grid" (B, P, W)."""


@dataclass(frozen=True)
class Piece:
    """`rows` rows of one episode from row `start` on, as read: frames of each camera, and signals."""

    digest: str
    start: int
    rows: int
    images: dict[str, np.ndarray]
    lowdim: dict[str, np.ndarray]


@lru_cache(maxsize=1)
def shared_encoder(params: EncoderParams, device: str, grid: GridParams | None = None) -> ClipEncoder:
    """Return the process's encoder: planning and a serial build share one."""
    return ClipEncoder(params, device, grid)


@dataclass(frozen=True)
class MakeRows:
    """Makes a worker's Embedder; small, and pickles.

    Attributes:
        encoder: with a precision that is not "auto": workers must not choose.
        grid: patch tokens that the fields include.
        identity: that the encoder must have on every worker.
        read: reads a slice of one demonstration.
        fields: the store's row arrays; they say which cameras and signals to read.
        views: of each frame.
        obs_shift: 1 pairs obs[t] with action[t + 1], since LIBERO records an observation after its action; 0 does not.
        batch_size: frames per forward pass.
    """

    encoder: EncoderParams
    grid: GridParams | None
    identity: dict[str, Any]
    read: Read
    fields: tuple[Field, ...]
    views: Views
    obs_shift: int
    batch_size: int

    def __call__(self) -> "Embedder":
        """Return the embedder, on this worker's device.

        Raises:
            AssetError: the weights on this machine are not those the build was planned with.
        """
        encoder = shared_encoder(self.encoder, pick_device(worker_index()), self.grid)
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
        self._cameras = tuple(f.name.removeprefix("image/") for f in spec.fields if f.name.startswith("image/"))

    def __call__(self, unit: Unit) -> dict[str, np.ndarray]:
        """Return field name -> (unit.rows, *field.shape)."""
        out = {field.name: np.empty((unit.rows, *field.shape), field.dtype) for field in self._spec.fields}
        for camera, view, rows, images in ahead(self._work(unit, out), READ_AHEAD):
            for kind, features in self._encoder.forward(images).items():
                out[f"{kind}/{camera}"][rows, view] = features
        return out

    def _work(self, unit: Unit, out: dict[str, np.ndarray]) -> Iterator[tuple[str, int, slice, torch.Tensor]]:
        """Yield (camera, view, rows of the unit, model input); low-dimensional rows go into `out` at once.

        A forward pass sees one view of one camera: the clean one has the same batches, and bytes, as without others.
        """
        start = 0
        for batch in self._batches(unit):
            rows = slice(start, start := start + sum(piece.rows for piece in batch))
            for name, values in out.items():
                kind, _, signal = name.partition("/")
                if kind == "lowdim":
                    values[rows] = np.concatenate([piece.lowdim[signal] for piece in batch])
            for camera in self._cameras:
                frames = np.concatenate([piece.images[camera] for piece in batch])
                for view in range(self._spec.views.count):
                    yield camera, view, rows, self._encoder.prepare(frames, self._light(batch, camera, view))

    def _light(self, batch: list[Piece], camera: str, view: int) -> np.ndarray | None:
        if view == 0:
            return None
        draw = self._spec.views.factors
        return np.concatenate([draw(p.digest, p.start, p.start + p.rows, camera, view) for p in batch])

    def _batches(self, unit: Unit) -> Iterator[list[Piece]]:
        """Read the unit in batches, the last of them shorter, each in pieces that are of one episode."""
        size, batch = self._spec.batch_size, list[Piece]()
        for segment in unit.segments:
            low = segment.start
            while low < segment.stop:
                high = min(segment.stop, low + size - sum(piece.rows for piece in batch))
                batch.append(self._read(segment, low, high))
                low = high
                if sum(piece.rows for piece in batch) == size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _read(self, segment: Segment, low: int, high: int) -> Piece:
        """Pair observation t with action t + obs_shift, for t in `low:high`."""
        shift = self._spec.obs_shift
        raw = self._spec.read(segment.payload, self._cameras, low, high + shift)
        names = [f.name.removeprefix("lowdim/") for f in self._spec.fields if f.name.startswith("lowdim/")]
        rows = {name: slice(shift, None) if name in ACTIONS else slice(high - low) for name in names}
        lowdim = {name: raw[name][rows[name]] for name in names}
        frames = {camera: raw["images"][camera][: high - low] for camera in self._cameras}
        return Piece(segment.digest, low, high - low, frames, lowdim)


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
