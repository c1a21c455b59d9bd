"""Frames of a video file by their times, with no handle that outlives a call."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float, UInt8

from pipeline.data.pictures import MAX_PIXELS
from pipeline.errors import DataError

UNREADABLE = (av.FFmpegError, OSError, ValueError)
"""What PyAV raises for a damaged file."""
LOCAL = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi"}
"""Options of FFmpeg. It would also open playlists, which name other files or addresses for it to read."""
MAX_BYTES = 4 << 30  # of the frames that are in memory at once


def frame_times(path: Path) -> Float[np.ndarray, " T"]:
    """Return when each frame is shown, in seconds, ascending. Nothing is decoded.

    Raises:
        DataError: the file cannot be opened, or is no video.
    """
    with _opened(path) as (container, stream):
        times = [p.pts for p in container.demux(stream) if p.pts is not None and p.size and not p.is_corrupt]
        return np.sort(np.array(times, np.float64)) * float(stream.time_base)


def frames_at(path: Path, times: Float[np.ndarray, " n"], tolerance_s: float) -> UInt8[np.ndarray, "n H W 3"]:
    """Return the frames that are shown at these ascending times, RGB, as they are in the file.

    Raises:
        DataError: the file cannot be decoded, or has no frame within `tolerance_s` of one of the times.
    """
    found: list[np.ndarray] = []
    with _opened(path) as (container, stream):
        seconds = float(stream.time_base)
        container.seek(max(0, int((times[0] - tolerance_s) / seconds)), stream=stream)  # to the keyframe before it
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            here = frame.pts * seconds
            if here > times[len(found)] + tolerance_s:
                break
            if here >= times[len(found)] - tolerance_s:
                found.append(_rgb(frame))
                if len(found) == len(times):
                    return np.stack(found)
    raise DataError(f"{path}: has no frame at {times[len(found)]:.3f} s. Make or download the file again")


def all_frames(path: Path) -> UInt8[np.ndarray, "T H W 3"]:
    """Return all frames, RGB.

    Raises:
        DataError: the file cannot be opened or decoded, holds no frames, or more than MAX_BYTES of them.
    """
    found: list[np.ndarray] = []
    left = MAX_BYTES
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            found.append(_rgb(frame))
            left -= found[-1].nbytes
            if left < 0:
                raise ValueError(f"more than {MAX_BYTES >> 20} MiB of frames; cut it into parts")
        if not found:
            raise ValueError("it holds no frames")
        return np.stack(found)


def packets(path: Path, start_s: float, stop_s: float) -> Iterator[bytes]:
    """Yield what the frames shown from `start_s` up to, not with, `stop_s` are decoded from: for a digest.

    Raises:
        DataError: as `frame_times` does.
    """
    with _opened(path) as (container, stream):
        seconds = float(stream.time_base)
        container.seek(max(0, int(start_s / seconds)), stream=stream)
        for packet in container.demux(stream):
            if packet.pts is not None and packet.is_keyframe and packet.pts * seconds >= stop_s:
                return
            if packet.pts is not None and packet.pts * seconds < stop_s:
                yield bytes(packet)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(str(path.absolute()), "r", options=LOCAL) as container:
            if not container.streams.video:
                raise ValueError("it holds no video")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # a worker has its share of the cores
            yield container, stream
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as a video ({error}). Make or download the file again") from error


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(f"a frame has {frame.width} x {frame.height} pixels; {MAX_PIXELS:,} are the most")
    return frame.to_ndarray(format="rgb24")
