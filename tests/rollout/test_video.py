"""Recordings: what was put in comes out, in the form that browsers play."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.files import write_atomic
from pipeline.rollout.video import VideoRecorder, film_strip, png, read_frames


def grey(level: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def test_video_holds_each_frame_with_the_cameras_side_by_side() -> None:
    recorder = VideoRecorder(("agentview", "eye_in_hand"))
    levels = [40, 90, 140, 190]
    for level in levels:
        recorder.add({"agentview": grey(level), "eye_in_hand": grey(255 - level)})
    content = recorder.close()
    assert content is not None
    frames = read_frames(content)
    assert frames.shape == (4, 64, 128, 3)
    assert frames[:, :, :60].mean((1, 2, 3)) == pytest.approx(levels, abs=4)
    assert frames[:, :, 68:].mean((1, 2, 3)) == pytest.approx([255 - level for level in levels], abs=4)
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 20
    assert content.index(b"moov") < content.index(b"mdat"), "the index comes first"


def test_odd_sides_lose_a_row(tmp_path: Path) -> None:
    recorder = VideoRecorder(("agentview",))
    recorder.add({"agentview": grey(100, (65, 63))})
    write_atomic(tmp_path / "sub/a.mp4", recorder.close() or b"")
    assert read_frames(tmp_path / "sub/a.mp4").shape == (1, 64, 62, 3)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.mp4"], "no temporary file is left"


def test_no_frame_is_no_video() -> None:
    assert VideoRecorder(("agentview",)).close() is None


def test_film_strip_goes_from_the_first_frame_to_the_last() -> None:
    frames = np.stack([grey(level) for level in range(0, 210, 10)])
    strip = film_strip(frames, count=5, gap=4)
    assert strip.shape == (64, 5 * 64 + 4 * 4, 3)
    assert [int(strip[0, i * 68, 0]) for i in range(5)] == [0, 50, 100, 150, 200]
    assert (strip[:, 64:68] == 255).all()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(strip)))), strip)
