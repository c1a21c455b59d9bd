"""Each part of the report, from the result files' contents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.errors import DataError
from pipeline.libero.conventions import CONTROL_HZ
from pipeline.report.charts import Series, interval_bar, line_chart, shares_bar
from pipeline.report.html import Content, Markup, Number, data_uri, el, table, video
from pipeline.report.inputs import Inputs
from pipeline.rollout.metrics import on_held_out, seen_before, whether_it_looks, wilson
from pipeline.rollout.results import EpisodeRecord
from pipeline.rollout.video import film_strip, png, read_frames

MAX_VIDEOS = 24  # of some 100 KiB each: the page is to open at once on a phone

# The reference project's expected curve of overfitting one LIBERO-Spatial task (its project summary), 1-3 h on two
# RTX 6000 Ada: epoch, loss, action MSE, action MAE.
REFERENCE_CURVE = (
    (0, 1.0, 0.5, 0.4),
    (50, 0.3, 0.15, 0.2),
    (100, 0.1, 0.05, 0.1),
    (200, 0.03, 0.01, 0.05),
    (500, 0.005, 0.001, 0.01),
)
CURVES = (
    ("Flow loss", "loss"),
    ("Action mean squared error", "action_mse"),
    ("Action mean absolute error", "action_mae"),
)


def headline(inputs: Inputs) -> Markup:
    """The result: a rate with its interval and n, and the figures beside it."""
    r = inputs.results
    rate = "no result" if r["success_rate"] is None else percent(r["success_rate"])
    errors = f"{r['errors']} episode{'s' if r['errors'] != 1 else ''} ended in an error, which no rate counts."
    big = el(
        "div",
        el("p", rate, class_="rate"),
        el("p", el("strong", "success"), f" in {r['successes']} of {r['n']} episodes"),
        interval_bar(r["success_rate"], r["wilson_low"], r["wilson_high"]),
        el("p", "95 % interval ", interval(r), f", n = {r['n']}. ", errors, class_="note"),
        el("p", el("strong", on_held_out(r["held_out"])), class_="note") if r.get("held_out") else "",
        el("p", el("strong", seen_before(r)), class_="note") if r.get("init_states_demonstrated") else "",
        class_="headline",
    )
    return el("section", el("h2", "Success rate"), el("div", big, tiles(inputs), class_="top"))


def tiles(inputs: Inputs) -> Markup:
    """The figures beside the headline."""
    timing = inputs.results["timings"]
    facts: list[tuple[str, str]] = []
    steps = inputs.results.get("mean_steps_to_success")
    if steps is not None:
        facts.append(("mean time to success", f"{steps / CONTROL_HZ:.1f} s ({steps:.0f} steps)"))
    latency = timing["policy_ms"]
    if inputs.training and latency["p50"] is not None:
        facts.append(("policy latency, median (90th percentile)", f"{latency['p50']:.0f} ({latency['p90']:.0f}) ms"))
    if inputs.training:
        facts.append(("training", f"{duration(inputs.training['wall_s'])} on {inputs.training.get('device', '?')}"))
        total = inputs.training.get("trainable_parameters", {}).get("total")
        if total:
            facts.append(("trainable parameters", f"{total / 1e6:.1f} M"))
    if not timing.get("episodes_resumed"):
        facts.append(("evaluation", duration(timing["wall_s"])))
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in facts], class_="tiles")


def per_task(inputs: Inputs) -> Markup:
    """The table of tasks, with a bar and its interval for each."""
    rows: list[Sequence[Content]] = []
    for r in inputs.results["per_task"]:
        steps = r["mean_steps_to_success"]
        rows.append(
            (
                [el("span", f"{r['suite']} {r['task']} ", class_="id"), r["language"]],
                percent(r["success_rate"]),
                interval_bar(r["success_rate"], r["wilson_low"], r["wilson_high"]),
                interval(r),
                str(r["n"]),
                str(r["successes"]),
                str(r["failures"]),
                str(r["errors"]),
                "–" if steps is None else f"{steps:.0f}",
            )
        )
    head = (
        "Task",
        "Success",
        "0 to 100 %",
        "95 % interval",
        "n",
        "Successes",
        "Failures",
        "Errors",
        "Steps to success",
    )
    caption = "Success per task; n counts episodes that ended in success or failure; steps are those to success"
    return el("section", el("h2", "Per task"), table(caption, head, rows, numbers=(1, 4, 5, 6, 7, 8)))


def conditions(inputs: Inputs) -> Content:
    """What the policy really uses: the same init states, with something taken away or changed."""
    r = inputs.results
    if not r.get("conditions"):
        return ()
    rows: list[Sequence[Content]] = []
    for row in ({**r, "condition": "plain", "amount": None}, *r["conditions"]):
        change = f"-{row['lost']} +{row['gained']} of {row['pairs']}" if "lost" in row else "–"
        if (against := row.get("against", "plain")) != "plain":
            change += f", to {against}"
        p_value = f"{row['p_value']:.2g}" if "lost" in row else "–"
        rows.append(
            (
                condition_name(row["condition"], row["amount"]),
                percent(row["success_rate"]),
                interval_bar(row["success_rate"], row["wilson_low"], row["wilson_high"]),
                interval(row),
                f"{row['successes']} of {row['n']}",
                change,
                p_value,
            )
        )
    head = ("Condition", "Success", "0 to 100 %", "95 % interval", "Solved", "Lost, gained", "McNemar's p")
    caption = "The first init states of each task; lost and gained: to the plain evaluation of the same, or that named"
    words = whether_it_looks(r)
    return el(
        "section",
        el("h2", "What the policy uses"),
        el("p", el("strong", words)) if words else "",
        table(caption, head, rows, numbers=(1, 4, 5, 6)),
    )


def condition_name(condition: str, amount: float | None) -> str:
    """Return what is changed, in words: displaced and blank cameras, 0.08."""
    name = condition.replace("_", " ").replace("+", " and ")
    return name if amount is None else f"{name}, {amount:g}"


def episodes(inputs: Inputs) -> Markup:
    """Videos, failures first, and a contact sheet of them."""
    order = {"failure": 0, "error": 1, "success": 2}
    filmed = sorted((r for r in inputs.records if r.video), key=lambda r: (order[r.outcome], r.key))
    shown = filmed[:MAX_VIDEOS]
    clips = [_clip(inputs.directory / str(r.video)) for r in shown]
    frames = [pictures for _, pictures in clips]
    videos = [_video(r, *clip) for r, clip in zip(shown, clips, strict=True)]
    sheet = [_strip(*parts) for parts in zip(shown, frames, strict=True)]
    if not shown:
        none = el("p", "None was recorded (eval_libero.videos_per_task).")
        return el("section", el("h2", "Episodes"), none, _errors(inputs.records))
    more = f" {len(filmed) - len(shown)} more lie in videos/." if len(filmed) > len(shown) else ""
    failures = sum(r.outcome == "failure" for r in inputs.records)
    seen = sum(r.outcome == "failure" for r in shown)
    note = f"Failed episodes first: {seen} of the {failures} are shown." if failures else "No episode failed."
    return el(
        "section",
        el("h2", "Episodes"),
        el(
            "p",
            note + more + " The agent's cameras, side by side.",
            class_="note",
        ),
        el("div", videos, class_="videos"),
        el("h3", "Contact sheet"),
        el("div", sheet, class_="sheet"),
        _errors(inputs.records),
    )


def _clip(path: Path) -> tuple[bytes, UInt8[np.ndarray, "T H W 3"]]:
    """Return a video and its frames. Raises DataError if it is missing or damaged."""
    try:
        content = path.read_bytes()
        return content, read_frames(content)
    except (OSError, ValueError) as error:  # av's errors are of these
        raise DataError(f"{path}: cannot be shown ({error}). Evaluate again: dvc repro -f eval_libero") from error


def _video(record: EpisodeRecord, clip: bytes, frames: UInt8[np.ndarray, "T H W 3"]) -> Markup:
    player = video(clip, png(frames[len(frames) // 2]), f"Recording of {_words(record)}")
    badge = el("span", record.outcome, class_=f"badge {record.outcome}")
    text = f" {record.suite} {record.task}, episode {record.episode}: {record.steps} steps"
    return el("figure", player, el("figcaption", badge, text))


def _strip(record: EpisodeRecord, frames: UInt8[np.ndarray, "T H W 3"]) -> Markup:
    picture = data_uri(png(film_strip(frames)), "image/png")
    image = el("img", src=picture, alt=f"Six frames, first to last: {_words(record)}", class_="strip")
    return el("figure", image, el("figcaption", _words(record)))


def _words(r: EpisodeRecord) -> str:
    return f"{r.outcome}, {r.suite} task {r.task}, episode {r.episode}, {r.steps} steps"


def _errors(records: Sequence[EpisodeRecord]) -> Content:
    wrong = [r for r in records if r.outcome == "error"]
    if not wrong:
        return ()
    rows = [(f"{r.suite} {r.task}, episode {r.episode}", str(r.error_kind), str(r.error)) for r in wrong]
    return el("h3", "Errors"), table("Episodes that ended in an error", ("Episode", "Kind", "What was said"), rows)


def learning(inputs: Inputs) -> Content:
    """Learning curves of the policy."""
    if inputs.training is None:
        return ()
    t = inputs.training
    text = f"{len(t['epochs'])} epochs in {duration(t['wall_s'])} on {t.get('device', '?')}"
    if "steps_per_s" in t:
        text += f", {t['steps_per_s']:g} steps/s"
    return el("section", el("h2", "Learning curves"), el("p", text + ".", class_="note"), _curves(t["epochs"]))


def _curves(epochs: Sequence[Mapping[str, Any]], reference: bool = False) -> Markup:
    charts = []
    for column, (title, key) in enumerate(CURVES, start=1):
        series = []
        for split, style in (("train", "a"), ("val", "b")):
            rows = [(e["epoch"], e[f"{split}_{key}"]) for e in epochs if e.get(f"{split}_{key}") is not None]
            name = "training" if split == "train" else "validation"
            series.append(Series(name, [x for x, _ in rows], [y for _, y in rows], style))
        if reference:
            points = [(row[0], row[column]) for row in REFERENCE_CURVE]
            series.append(Series("reference", [x for x, _ in points], [y for _, y in points], "c", markers=True))
        charts.append(line_chart(title, "epoch", series))
    return el("div", charts, class_="charts")


def overfit(inputs: Inputs) -> Content:
    """The reference's own benchmark: one task to near zero error, its expected curve beside ours."""
    if inputs.overfit is None:
        return ()
    epochs = inputs.overfit["epochs"]
    rows: list[Sequence[Content]] = []
    for epoch, *expected in REFERENCE_CURVE:
        cells: list[str] = []
        for value, (_, key) in zip(expected, CURVES, strict=True):
            ours = [e[f"train_{key}"] for e in epochs if e["epoch"] <= epoch and e.get(f"train_{key}") is not None]
            reached = epochs[-1]["epoch"] + 1 >= epoch
            cells += [f"{value:g}", f"{ours[-1]:.2g}" if ours and reached else "–"]
        rows.append((str(epoch), *cells))
    head = ("Epoch", *(f"{name}, {who}" for name in ("Loss", "MSE", "MAE") for who in ("reference", "ours")))
    device = inputs.overfit.get("device", "?")
    note = f"Ours: {duration(inputs.overfit['wall_s'])} on {device}. The reference: 1 to 3 h on two RTX 6000 Ada."
    return el(
        "section",
        el("h2", "Overfitting one task, beside the reference"),
        el("p", note, class_="note"),
        table("Training split, at the reference's epochs", head, rows, numbers=range(1, 7)),
        _curves(epochs, reference=True),
    )


def expert(inputs: Inputs) -> Content:
    """The scripted expert's success per task, from benchmarks/expert.py."""
    if inputs.expert is None:
        return ()
    e = inputs.expert
    rows: list[Sequence[Content]] = []
    for r in e["per_task"]:
        low, high = wilson(r["successes"], r["n"]) or (None, None)
        rate = r["successes"] / r["n"] if r["n"] else None
        rows.append(
            (
                [el("span", f"{e['suite']} {r['task']} ", class_="id"), r["language"]],
                percent(rate),
                interval_bar(rate, low, high),
                interval({"wilson_low": low, "wilson_high": high}),
                f"{r['successes']} of {r['n']}",
                "–" if r["mean_steps"] is None else f"{r['mean_steps']:.0f}",
            )
        )
    head = ("Task", "Success", "0 to 100 %", "95 % interval", "Solved", "Mean steps")
    first, last = e["rows"]
    caption = f"Scripted expert with privileged state, init states {first} to {last}"
    made = table(caption, head, rows, (1, 4, 5))
    return el("section", el("h2", "The expert behind the demonstrations"), made)


def time_spent(inputs: Inputs) -> Markup:
    """Wall time of the stages, and of the evaluation's parts."""
    t = inputs.results["timings"]
    stages = dict(inputs.recording)
    if inputs.training:
        stages["train_flow"] = inputs.training["wall_s"]
    if not t.get("episodes_resumed"):
        stages["eval_libero"] = t["wall_s"]
    rows = [(name, duration(seconds)) for name, seconds in stages.items()]
    parts = [(name, t[key]) for name, key in _PARTS]
    parts.append(("other", max(0.0, t["episode_s_total"] - sum(amount for _, amount in parts))))
    rate = t["control_steps_per_s"]
    note = f"All episodes together took {duration(t['episode_s_total'])} of the workers' time"
    note += f", {rate:g} control steps/s in each." if rate else "."
    return el(
        "section",
        el("h2", "Where the time went"),
        table("Wall time of the stages", ("Stage", "Wall time"), rows, numbers=(1,)),
        el("h3", "Inside the episodes"),
        el("p", note, class_="note"),
        shares_bar(parts),
    )


_PARTS = (("reset and settling", "reset_s"), ("physics", "physics_s"), ("drawing", "render_s"), ("policy", "policy_s"))


def provenance(inputs: Inputs) -> Markup:
    """What the result was obtained with, down to the last setting."""
    r = inputs.results
    made = r.get("provenance", {})
    protocol = {k: v for k, v in r["protocol"].items() if not isinstance(v, Mapping | list)}
    rows = [(name.replace("_", " "), "default" if value is None else str(value)) for name, value in protocol.items()]
    sim = r["protocol"].get("sim", {})
    rows += [(f"sim: {name.replace('_', ' ')}", str(value)) for name, value in sim.items()]
    for used in r["protocol"].get("simulators", []):
        rows.append(("drawn by", f"{used['gl_used']}, {used['renderer']}"))
    rows += [("code", str(made.get("git"))), ("command", " ".join(made.get("argv", [])))]
    rows += [(name, str(number)) for name, number in r.get("versions", {}).items()]
    everything = el("pre", json.dumps({"protocol": r["protocol"], "provenance": made}, indent=2), tabindex="0")
    return el(
        "section",
        el("h2", "Protocol and provenance"),
        table("Settings and versions", ("Setting", "Value"), rows),
        el("details", el("summary", "Everything, as JSON"), everything),
    )


def percent(rate: Number | None) -> str:
    """Return 95 % or 95.5 %; a dash for no rate."""
    return "–" if rate is None else f"{100 * rate:.1f}".removesuffix(".0") + " %"


def interval(row: Mapping[str, Any]) -> str:
    """Return the interval of a row of results in percent."""
    if row["wilson_low"] is None:
        return "–"
    return f"{100 * row['wilson_low']:.1f} – {100 * row['wilson_high']:.1f} %"


def duration(seconds: Number) -> str:
    """Return 8.2 s, 3 min 05 s or 1 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
