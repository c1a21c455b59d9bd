"""What an episode looked like: H.264 in mp4, as every browser plays it, and film strips for the page and the README."""

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.libero.conventions import CONTROL_HZ


class VideoRecorder:
    """Encodes a frame per control step, the cameras side by side, and gives the file's content.

    It is handed to the main process, since a worker of a cluster may not share its disk.

    Args:
        cameras: from left to right.
    """

    def __init__(self, cameras: tuple[str, ...]) -> None:
        self._cameras = cameras
        self._file = tempfile.NamedTemporaryFile(suffix=".mp4")  # noqa: SIM115 (closed by close)
        self._container: Any = None
        self._stream: Any = None

    def add(self, images: Mapping[str, UInt8[np.ndarray, "H W 3"]]) -> None:
        """Append one frame: a picture of each camera."""
        frame = np.concatenate([images[camera] for camera in self._cameras], axis=1)
        # yuv420p halves the colour's resolution: sides must be even.
        frame = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
        if self._container is None:
            self._open(*frame.shape[:2])
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
            self._container.mux(packet)

    def close(self) -> bytes | None:
        """Return the mp4, or None if no frame was added."""
        if self._container is None:
            return None
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        self._container = None
        with self._file:
            return Path(self._file.name).read_bytes()

    def _open(self, height: int, width: int) -> None:
        # faststart: the index comes first, so that a browser can play before it has read all.
        self._container = av.open(self._file.name, "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream("libx264", rate=CONTROL_HZ, options={"crf": "20", "preset": "fast"})
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.thread_count = 1  # as many as a worker has cores; and the same bytes on any machine


def read_frames(video: Path | bytes) -> UInt8[np.ndarray, "T H W 3"]:
    """Return all frames of a video file or of its content."""
    source = io.BytesIO(video) if isinstance(video, bytes) else str(video)
    with av.open(source, "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def film_strip(
    frames: UInt8[np.ndarray, "T H W 3"], count: int = 6, gap: int = 4
) -> UInt8[np.ndarray, "height width 3"]:
    """Return `count` frames from the first to the last, at equal distances, side by side on white.

    Args:
        gap: pixels between two of them.
    """
    chosen = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    white = np.full((frames.shape[1], gap, 3), 255, np.uint8)
    parts = [part for frame in chosen for part in (frame, white)]
    return np.concatenate(parts[:-1], axis=1)


def png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Return the image as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png", optimize=True)
    return out.getvalue()
