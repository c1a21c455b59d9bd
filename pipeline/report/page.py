"""The report of one run: an HTML file that needs nothing else, not even a network."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.errors import DataError
from pipeline.libero.conventions import CONTROL_HZ
from pipeline.report import results
from pipeline.report.charts import Series, interval_bar, line_chart, shares_bar
from pipeline.report.html import Content, Markup, data_uri, document, el, video
from pipeline.report.inputs import Inputs
from pipeline.report.table import Table, duration, interval, percent
from pipeline.rollout.metrics import on_held_out, seen_before, whether_it_looks
from pipeline.rollout.results import EpisodeRecord
from pipeline.rollout.video import film_strip, png, read_frames

MAX_VIDEOS = 24  # of some 100 KiB each: the page is to open at once on a phone
FAILED = ("failure", "policy_error")
CURVES = (
    ("Loss", "loss"),
    ("Action mean squared error", "action_mse"),
    ("Action mean absolute error", "action_mae"),
)


def page(inputs: Inputs) -> str:
    """Return the whole page."""
    r, agent = inputs.results, inputs.agent.get("name", "policy")
    words = whether_it_looks(r)
    changed = results.conditions(r).html()
    parts = (
        ("Success rate", el("div", headline(inputs), tiles(inputs), class_="top")),
        ("Per task", results.tasks(r).html()),
        ("What the policy uses", [el("p", el("strong", words)) if words else "", changed] if changed else ()),
        ("Episodes", episodes(inputs)),
        ("Recipe", recipe(inputs)),
        ("Learning curves", learning(inputs)),
        ("Where the time went", time_spent(inputs)),
        ("Protocol and provenance", provenance(inputs)),
    )
    return document(inputs.experiment, f"{agent} on {r['suite']}, LIBERO simulator", parts)


def headline(inputs: Inputs) -> Markup:
    """The result: a rate with its interval and n."""
    r = inputs.results
    errors = f"{r['errors']} episode{'s' if r['errors'] != 1 else ''} ended in an error, which no rate counts"
    errors += f"; as failures: {percent(r['worst_case_rate'])}." if r["errors"] else "."
    if r["policy_errors"]:
        errors += f" {r['policy_errors']} of the failures are errors of the policy."
    warnings = [on_held_out(r["held_out"])] if r.get("held_out") else []
    warnings += [seen_before(r)] if r.get("init_states_demonstrated") else []
    return el(
        "div",
        el("p", "no result" if r["success_rate"] is None else percent(r["success_rate"]), class_="rate"),
        el("p", el("strong", "success"), f" in {r['successes']} of {r['n']} episodes"),
        interval_bar(r["success_rate"], r["wilson_low"], r["wilson_high"]),
        el("p", f"95 % interval {interval(r)}, n = {r['n']}. {errors}", class_="note"),
        [el("p", el("strong", warning), class_="note") for warning in warnings],
        class_="headline",
    )


def tiles(inputs: Inputs) -> Markup:
    """The figures beside the headline."""
    r, timing, training = inputs.results, inputs.results["timings"], inputs.training or {}
    facts: list[tuple[str, str]] = []
    if (steps := r.get("mean_steps_to_success")) is not None:
        facts.append(("mean time to success", f"{steps / CONTROL_HZ:.1f} s ({steps:.0f} steps)"))
    if inputs.agent.get("encoder"):
        facts.append(("encoder", results.encoder(inputs.agent["encoder"])))
    if inputs.recipe:
        facts.append(("demonstrations", results.demonstrations(inputs.recipe)))
    if training:
        facts.append(("training", f"{duration(training['wall_s'])} on {training.get('device', '?')}"))
        if total := training.get("trainable_parameters", {}).get("total"):
            facts.append(("trainable parameters", f"{total / 1e6:.1f} M"))
        if (latency := timing["policy_ms"])["p50"] is not None:
            facts.append(("one inference, median (90th percentile)", f"{latency['p50']:.0f} ({latency['p90']:.0f}) ms"))
    if not timing.get("episodes_resumed"):
        facts.append(("evaluation, with its conditions and videos", duration(timing["wall_s"])))
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in facts], class_="tiles")


def episodes(inputs: Inputs) -> Content:
    """Videos, failures first, a contact sheet of them, and the list of all episodes."""
    records = inputs.records
    filmed = [r for r in results.failures_first(records) if r.video]
    shown = [(r, *_clip(inputs.directory / str(r.video))) for r in filmed[:MAX_VIDEOS]]
    failed = sum(r.outcome in FAILED for r in records)
    note = "None was filmed (eval_libero.videos_per_task). "
    if shown:
        seen = sum(r.outcome in FAILED for r, *_ in shown)
        note = f"Failed episodes first: {seen} of the {failed} are shown. " if failed else "No episode failed. "
        note += f"{len(filmed) - len(shown)} more lie in videos/. " if len(filmed) > len(shown) else ""
        note += "The agent's cameras, side by side."
    sheet = [el("h3", "Contact sheet"), el("div", [_strip(r, frames) for r, _, frames in shown], class_="sheet")]
    return [
        el("p", note, class_="note"),
        el("div", [_video(*one) for one in shown], class_="videos"),
        sheet if shown else "",
        el("h3", f"All {len(records)} episodes"),
        _how_to_film(inputs),
        el("details", el("summary", "Init state, outcome and steps of each"), results.episodes(records).html()),
    ]


def _how_to_film(inputs: Inputs) -> Content:
    """The command that films all episodes of the first one's task."""
    if not inputs.records:
        return ()
    r = results.failures_first(inputs.records)[0]
    task = ("--set", f"data.suites=[{r.suite}]", "--set", f"data.tasks={{{r.suite}: [{r.task}]}}")
    made = inputs.results.get("provenance", {})
    films = ("--set", f"eval_libero.videos_per_task={len(inputs.records)}", "--out", "results/filmed")
    command = results.command(made, *task, *films)
    return el("p", "Films all episodes of a task, here the first's: ", el("code", command), class_="note")


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


def recipe(inputs: Inputs) -> Content:
    """How the policy came about, and how to look at what it learnt from."""
    if inputs.recipe is None:
        return ()
    suites = str(inputs.results["suite"]).split("+")
    commands = [el("code", f"python -m stages.dataset {suite} ") for suite in suites]
    return results.recipe(inputs.recipe).html(), el("p", "Shows the demonstrations: ", commands, class_="note")


def learning(inputs: Inputs) -> Content:
    """Learning curves of the policy."""
    t = inputs.training
    if t is None:
        return ()
    text = f"{len(t['epochs'])} epochs in {duration(t['wall_s'])} on {t.get('device', '?')}"
    text += f", {t['steps_per_s']:g} steps/s." if "steps_per_s" in t else "."
    charts = []
    for title, key in CURVES:
        series = []
        for split, name, style in (("train", "training", "a"), ("val", "validation", "b")):
            rows = [(e["epoch"], e[f"{split}_{key}"]) for e in t["epochs"] if e.get(f"{split}_{key}") is not None]
            series.append(Series(name, [x for x, _ in rows], [y for _, y in rows], style))
        charts.append(line_chart(title, "epoch", series))
    return el("p", text, class_="note"), el("div", charts, class_="charts")


def time_spent(inputs: Inputs) -> Content:
    """Wall time of training and evaluation, and of the episodes' parts."""
    t = inputs.results["timings"]
    rows = [("training", duration(inputs.training["wall_s"]))] if inputs.training else []
    if not t.get("episodes_resumed"):
        rows.append(("evaluation: start of the workers, plain episodes, conditions, videos", duration(t["wall_s"])))
    named = (("reset and settling", "reset_s"), ("physics", "physics_s"), ("drawing", "render_s"))
    parts = [(name, t[key]) for name, key in (*named, ("policy", "policy_s"))]
    parts.append(("other", max(0.0, t["episode_s_total"] - sum(amount for _, amount in parts))))
    note = f"Together they took {duration(t['episode_s_total'])} of the workers' time, those of the conditions left out"
    note += f"; {t['control_steps_per_s']:g} control steps/s in each." if t["control_steps_per_s"] else "."
    return (
        Table("Wall time", ("what", "wall time"), rows, (1,)).html(),
        el("h3", "Inside the plain evaluation's episodes"),
        el("p", note, class_="note"),
        shares_bar(parts),
    )


def provenance(inputs: Inputs) -> Content:
    """What the result was obtained with, down to the last setting."""
    r = inputs.results
    everything = {"protocol": r["protocol"], "provenance": r.get("provenance", {})}
    versions = Table("Versions", ("package", "version"), [(k, str(v)) for k, v in r.get("versions", {}).items()])
    return (
        results.settings(r).html(),
        el("details", el("summary", "Versions of the libraries"), versions.html()),
        el("details", el("summary", "Everything, as JSON"), el("pre", json.dumps(everything, indent=2), tabindex="0")),
    )
