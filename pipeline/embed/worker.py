"""Demonstrations to rows of the embedding store: frames through CLIP, observations paired with actions."""

import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from cache.schema import Field
from cache.units import Segment, Unit
from pipeline.compute import report_progress, worker_index
from pipeline.data.demos import read
from pipeline.embed.settings import Embed
from pipeline.encode.augment import Views
from pipeline.encode.clip import ClipEncoder, pick_device
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.errors import AssetError, DataError
from pipeline.libero.depth import is_depth

T = TypeVar("T")
Work = tuple[str, int, slice, torch.Tensor]
"""Camera, view, rows of the unit, model input."""
READ_AHEAD = 2  # batches
QUEUED = 2  # forward passes on a GPU while one is awaited
REPORT_EVERY_S = 0.5
CONCURRENCY = 2  # units in progress at once in a worker: one is encoded, another written or its first batches read
ACTIONS = ("action", "expert_action")


class BrokenEpisode(DataError):
    """An episode that cannot be read (any more). `payload` is the demonstration; the text names it."""

    def __init__(self, text: str, payload: Any) -> None:
        super().__init__(text, payload)  # both, since exceptions are pickled by their arguments
        self.payload = payload

    def __str__(self) -> str:
        return str(self.args[0])


@runtime_checkable
class FrameEncoder(Protocol):
    """What an Embedder needs of an encoder; `pipeline.encode.clip.ClipEncoder` is one."""

    def prepare(self, frames: np.ndarray, light: np.ndarray | None) -> torch.Tensor:
        """Frames to model input, in the reading thread; `light` is as `Views.factors` gives it."""

    def submit(self, images: torch.Tensor) -> Callable[[], dict[str, np.ndarray]]:
        """Start on model input; what is returned gives features of each kind: "image" (B, D), "grid" (B, P, W)."""


@dataclass(frozen=True)
class Piece:
    """`rows` rows of one episode from row `start` on, as read: frames of each camera, and signals."""

    source: Any  # the demonstration
    digest: str
    start: int
    rows: int
    images: dict[str, np.ndarray]
    lowdim: dict[str, np.ndarray]


@lru_cache(maxsize=1)
def shared_encoder(
    params: EncoderParams, device: str, grid: GridParams | None = None, batch_size: int | None = None
) -> ClipEncoder:
    """Return the process's encoder: planning and a serial build share one."""
    return ClipEncoder(params, device, grid, batch_size)


def views(settings: Embed) -> Views:
    """Return which views of a frame the settings ask for."""
    return Views(settings.views, settings.brightness, settings.contrast)


@dataclass(frozen=True)
class MakeEmbedder:
    """Makes a worker's Embedder; small, and pickles.

    Attributes:
        settings: with precision and batch size decided, see `plan.load_encoder`.
        identity: that the encoder must have on every worker.
        fields: the store's row arrays; they say which cameras and signals to read.
    """

    settings: Embed
    identity: dict[str, Any]
    fields: tuple[Field, ...]

    def __call__(self) -> "Embedder":
        """Return the embedder, on this worker's device.

        Raises:
            AssetError: the weights on this machine are not those the build was planned with.
        """
        settings = self.settings
        encoder = shared_encoder(settings.encoder, pick_device(worker_index()), settings.grid, settings.batch_size)
        if encoder.identity != self.identity:
            different = [key for key, value in self.identity.items() if encoder.identity.get(key) != value]
            raise AssetError(
                f"embed.encoder: a worker's encoder differs in {', '.join(different)} from the one the build was "
                f"planned with ({encoder.identity[different[0]]}, not {self.identity[different[0]]}). "
                "Give all machines the same files and library versions."
            )
        return Embedder(settings, self.fields, encoder)


class Embedder:
    """Computes the rows of a unit. What a batch holds is a function of the unit alone, and so are the bytes."""

    def __init__(self, settings: Embed, fields: Sequence[Field], encoder: FrameEncoder) -> None:
        self._fields = tuple(fields)
        self._obs_shift = settings.obs_shift
        self._views = views(settings)
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, "encode")  # one, whoever calls: OpenMP keeps threads for each caller
        self.batch_size = settings.batch_size or settings.shard_rows
        self._closed = threading.Event()
        self._reported = -math.inf
        self._cameras = tuple(f.name.removeprefix("image/") for f in fields if f.name.startswith("image/"))

    def __call__(self, unit: Unit) -> dict[str, np.ndarray]:
        """Return field name -> (unit.rows, *field.shape). May be called from several threads, as `CONCURRENCY` says.

        Reports (unit.index, images encoded of it) as its progress.

        Raises:
            BrokenEpisode: a demonstration that cannot be read.
        """
        out = {field.name: np.empty((unit.rows, *field.shape), field.dtype) for field in self._fields}
        work = ahead(self._work(unit, out), READ_AHEAD)  # this unit is read while another one is encoded
        try:
            encoding = self._thread.submit(self._encode, unit, work, out)
        except RuntimeError as error:  # closed meanwhile
            work.close()
            raise CancelledError from error
        encoding.result()
        return out

    def close(self) -> None:
        """Give up what is under way, after the batch at hand."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)

    def _encode(self, unit: Unit, work: Generator[Work], out: dict[str, np.ndarray]) -> None:
        queued: deque[tuple[Work, Callable[[], dict[str, np.ndarray]]]] = deque()
        encoded = 0

        def finish() -> None:
            (camera, view, rows, _), wait = queued.popleft()
            for kind, features in wait().items():
                out[f"{kind}/{camera}"][rows, view] = features

        with contextlib.closing(work):
            for item in work:
                if self._closed.is_set():
                    raise CancelledError
                queued.append((item, self._encoder.submit(item[3])))
                encoded += item[2].stop - item[2].start
                if time.monotonic() - self._reported >= REPORT_EVERY_S:
                    self._reported = time.monotonic()
                    report_progress((unit.index, encoded))
                if len(queued) > QUEUED:
                    finish()
            while queued:
                finish()

    def _work(self, unit: Unit, out: dict[str, np.ndarray]) -> Iterator[Work]:
        """Yield what there is to encode; low-dimensional rows go into `out` at once.

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
                frames = _together(batch, camera)
                for view in range(self._views.count):
                    yield camera, view, rows, self._encoder.prepare(frames, self._light(batch, camera, view))

    def _light(self, batch: list[Piece], camera: str, view: int) -> np.ndarray | None:
        if view == 0 or is_depth(camera):  # light is no matter of depth
            return None
        draw = self._views.factors
        return np.concatenate([draw(p.digest, p.start, p.start + p.rows, camera, view) for p in batch])

    def _batches(self, unit: Unit) -> Iterator[list[Piece]]:
        """Read the unit in batches, the last of them shorter, each in pieces that are of one episode."""
        size, batch = self.batch_size, list[Piece]()
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
        shift = self._obs_shift
        try:
            raw = read(segment.payload, self._cameras, low, high + shift)
        except DataError as error:
            raise BrokenEpisode(str(error), segment.payload) from error
        names = [f.name.removeprefix("lowdim/") for f in self._fields if f.name.startswith("lowdim/")]
        rows = {name: slice(shift, None) if name in ACTIONS else slice(high - low) for name in names}
        lowdim = {name: raw[name][rows[name]] for name in names}
        frames = {camera: raw["images"][camera][: high - low] for camera in self._cameras}
        return Piece(segment.payload, segment.digest, low, high - low, frames, lowdim)


def _together(batch: list[Piece], camera: str) -> np.ndarray:
    """Return the batch's frames of one camera.

    Raises:
        DataError: they are of several sizes; it names two demonstrations.
    """
    first = batch[0]
    for piece in batch:
        a, b = (p.images[camera].shape[1:3] for p in (first, piece))
        if a != b:
            raise DataError(
                f"{camera}: the frames of {first.source} are {a[0]}x{a[1]}, those of {piece.source} {b[0]}x{b[1]}. One "
                "store takes one size: make all demonstrations of the suite in the same way"
            )
    return np.concatenate([piece.images[camera] for piece in batch])


def ahead(items: Iterable[T], depth: int) -> Generator[T]:
    """Yield the items of an iterator that runs in a thread, from now on, at most `depth` items ahead.

    Its errors are raised where the items are taken. Close the generator to end the thread before all are.
    """
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

    def take() -> Generator[T]:
        try:
            yield  # type: ignore[misc]  # so that closing it ends the thread, even before an item was taken
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

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    taken = take()
    next(taken)
    return taken
