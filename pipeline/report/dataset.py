"""What a suite's demonstrations look like: its cameras, actions over time, lengths, what is left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from pipeline.libero.conventions import ACTION_NAMES, CONTROL_HZ
from pipeline.libero.demos.read import Demo, Quarantined, read
from pipeline.libero.suites import Task
from pipeline.report.charts import Series, histogram, line_chart
from pipeline.report.html import Content, Markup, document, el, video
from pipeline.report.table import NONE, Table
from pipeline.rollout.video import VideoRecorder, png, read_frames

SAMPLES = 3  # recordings per task: the shortest, the median and the longest demonstration
BINS = 32


def dataset_page(
    suite: str,
    tasks: Sequence[Task],
    demos: Sequence[Demo],
    quarantine: Sequence[Quarantined],
    cameras: tuple[str, ...],
) -> str:
    """Return the page, with pictures of `cameras`.

    Raises:
        DataError: a demonstration can't be read any more.
    """
    frames = sum(demo.length for demo in demos)
    left_out = f", {len(quarantine)} left out" if quarantine else ""
    of = f"{len(tasks)} task{'s' if len(tasks) != 1 else ''}"
    text = f"{len(demos)} demonstrations of {of}, {frames} steps at {CONTROL_HZ} Hz{left_out}"
    own = [(task, [demo for demo in demos if demo.task == task]) for task in tasks]
    parts = [
        ("Tasks", _overview(own)),
        *((f"{task.id}: {task.language}", _task(mine, cameras)) for task, mine in own if mine),
        ("Left out", _quarantine(quarantine)),
    ]
    return document(f"Demonstrations: {suite}", text, parts)


def _overview(own: Sequence[tuple[Task, Sequence[Demo]]]) -> Content:
    rows = []
    for task, demos in own:
        lengths = [demo.length for demo in demos]
        shown = [str(f(lengths)) for f in (min, lambda x: round(float(np.median(x))), max)] if demos else [NONE] * 3
        rows.append((str(task.id), task.language, str(len(demos)), *shown))
    head = ("task", "instruction", "demonstrations", "shortest", "median", "longest")
    return Table("Demonstrations per task, and their lengths in steps", head, rows, (2, 3, 4, 5)).html()


def _task(demos: Sequence[Demo], cameras: tuple[str, ...]) -> Content:
    by_length = sorted(demos, key=lambda demo: demo.length)
    picks = sorted(set(np.linspace(0, len(demos) - 1, SAMPLES).round().astype(int).tolist()))
    samples = [by_length[i] for i in picks]
    moved = [read(demo, ()) for demo in demos]
    typical = samples[len(samples) // 2]
    return (
        el("div", [_recording(demo, cameras) for demo in samples], class_="videos"),
        el("h3", f"Actions of {typical.name}"),
        _traces(moved[list(demos).index(typical)]),
        el("h3", f"All {len(demos)} demonstrations"),
        _distributions(demos, np.concatenate([rows["action"] for rows in moved])),
    )


def _recording(demo: Demo, cameras: tuple[str, ...]) -> Markup:
    images = read(demo, cameras)["images"]
    recorder = VideoRecorder(cameras)
    for t in range(demo.length):
        recorder.add({camera: frames[t] for camera, frames in images.items()})
    clip = recorder.close() or b""
    poster = png(read_frames(clip)[demo.length // 2])
    words = f"{demo.name}: {demo.length} steps, {demo.length / CONTROL_HZ:.1f} s"
    return el("figure", video(clip, poster, f"{len(cameras)} cameras in {words}"), el("figcaption", words))


def _traces(rows: dict[str, Any]) -> Markup:
    """Action, gripper and force against time. Observations were recorded after the action of the same row."""
    action, fingers = rows["action"], rows["gripper"]
    seconds = (np.arange(len(action)) / CONTROL_HZ).tolist()

    def lines(names: Sequence[str], values: Float[np.ndarray, "T 3"]) -> list[Series]:
        styles = ("a", "b", "d")
        return [
            Series(name, seconds, column.tolist(), style)
            for name, column, style in zip(names, values.T, styles, strict=True)
        ]

    opening = 1000 * (fingers[:, 0] - fingers[:, 1])
    command = Series("command: -1 opens, +1 closes", seconds, action[:, 6].tolist(), "a")
    return el(
        "div",
        line_chart("Translation, 1 = 5 cm", "s", lines(ACTION_NAMES[:3], action[:, :3]), (-1, 1)),
        line_chart("Rotation, 1 = 0.5 rad", "s", lines(ACTION_NAMES[3:6], action[:, 3:6]), (-1, 1)),
        line_chart("Gripper command", "s", [command], (-1, 1)),
        line_chart("Opening of the fingers, mm", "s", [Series("opening", seconds, opening.tolist(), "a")], (0, 80)),
        [
            line_chart(title, "s", lines("xyz", values), (float(values.min()), float(values.max())))
            for title, values in _wrench(rows)
        ],
        class_="charts",
    )


def _wrench(rows: dict[str, Any]) -> list[tuple[str, Float[np.ndarray, "T 3"]]]:
    if "ee_wrench" not in rows:
        return []
    return [("Force at the wrist, N", rows["ee_wrench"][:, :3]), ("Torque at the wrist, N m", rows["ee_wrench"][:, 3:])]


def _distributions(demos: Sequence[Demo], actions: Float[np.ndarray, "N 7"]) -> Markup:
    lengths = np.array([demo.length for demo in demos])
    low, high = int(lengths.min()) // 10 * 10, (int(lengths.max()) // 10 + 1) * 10
    counts = np.histogram(lengths, bins=(high - low) // 10, range=(low, high))[0]
    charts = [histogram("Length of demonstrations", "steps", counts.tolist(), low, high)]
    for i, name in enumerate(ACTION_NAMES):
        counts = np.histogram(actions[:, i], bins=BINS, range=(-1, 1))[0]
        mean, std = actions[:, i].mean(), actions[:, i].std()
        charts.append(histogram(name, f"mean {mean:.3f}, std {std:.3f}", counts.tolist(), -1, 1))
    return el("div", charts, class_="charts")


def _quarantine(quarantine: Sequence[Quarantined]) -> Content:
    if not quarantine:
        return el("p", "Nothing: every demonstration that was found is sound.")
    rows = [(q.file.name, q.demo or "the whole file", q.reason) for q in quarantine]
    return Table("What is damaged, and how", ("file", "demonstration", "why"), rows).html()
