"""Episode records to success rates. A rate never stands alone: n and a 95 % interval are beside it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pipeline.rollout.results import EpisodeRecord
from pipeline.rollout.settings import amount_text, condition_parts

SIGNIFICANT = 0.05


def wilson(successes: int, n: int) -> tuple[float, float] | None:
    """Return Wilson's 95 % score interval of a success probability, or None without an observation."""
    if n == 0:
        return None
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def rates(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Return counts and the success rate, in which a policy's errors are failures and others' errors do not count.

    Returns:
        episodes (all), errors, n = episodes - errors, successes, failures, policy_errors (those of the failures that
        were one), success_rate and its interval (None if n is 0), worst_case_rate (with the errors as failures; None
        without any), and the mean number of steps to success (None without one).
    """
    successes = [r for r in records if r.outcome == "success"]
    errors = sum(r.outcome == "error" for r in records)
    n = len(records) - errors
    low, high = wilson(len(successes), n) or (None, None)
    return {
        "episodes": len(records),
        "n": n,
        "successes": len(successes),
        "failures": n - len(successes),
        "policy_errors": sum(r.outcome == "policy_error" for r in records),
        "errors": errors,
        "success_rate": len(successes) / n if n else None,
        "wilson_low": low,
        "wilson_high": high,
        "worst_case_rate": len(successes) / len(records) if errors else None,
        "mean_steps_to_success": float(np.mean([r.steps for r in successes])) if successes else None,
    }


def summary(records: Iterable[EpisodeRecord]) -> dict[str, Any]:
    """Return eval.json's results: `rates` of all, `per_suite` and `per_task`, in the benchmark's order."""
    ordered = sorted(records, key=lambda r: r.key)
    suites = {name: list(group) for name, group in groupby(ordered, key=lambda r: r.suite)}
    tasks = [list(group) for _, group in groupby(ordered, key=lambda r: (r.suite, r.task))]
    return {
        "suite": "+".join(suites),
        **rates(ordered),
        "per_suite": [{"suite": name, **rates(group)} for name, group in suites.items()],
        "per_task": [
            {"suite": g[0].suite, "task": g[0].task, "name": g[0].name, "language": g[0].language, **rates(g)}
            for g in tasks
        ],
    }


def held_out(records: Iterable[EpisodeRecord], learnt: Mapping[str, Sequence[int] | None]) -> dict[str, Any] | None:
    """Return the rates over the tasks that a policy did not learn from, and which they are; None without one.

    Args:
        learnt: per suite, the tasks that it did learn from; None is all of them.
    """

    def new(record: EpisodeRecord) -> bool:
        ids = learnt.get(record.suite, ())
        return ids is not None and record.task not in ids

    rows = [r for r in records if new(r)]
    return {"tasks": sorted({(r.suite, r.task) for r in rows}), **rates(rows)} if rows else None


def paired(plain: Iterable[EpisodeRecord], changed: Iterable[EpisodeRecord]) -> dict[str, Any]:
    """Compare two evaluations by McNemar's exact test, on the init states that both began in, errors left out.

    Returns:
        pairs; lost and gained (successes of `plain` alone, and of `changed` alone); p_value, two-sided.
    """
    before, after = (
        {(r.suite, r.task, r.init_row): r.outcome == "success" for r in records if r.outcome != "error"}
        for records in (plain, changed)
    )
    both = before.keys() & after.keys()
    lost = sum(before[key] and not after[key] for key in both)
    gained = sum(after[key] and not before[key] for key in both)
    p_value = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return {"pairs": len(both), "lost": lost, "gained": gained, "p_value": p_value}


def timings(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Return where the episodes' wall time went, and percentiles of the policy's latency (encoder included)."""
    calls_ms = np.array([ms for r in records for ms in r.policy_ms])
    steps = sum(r.steps for r in records)
    seconds = sum(r.seconds for r in records)
    percentiles = np.percentile(calls_ms, [50, 90, 99]).round(2).tolist() if len(calls_ms) else [None] * 3
    return {
        "episode_s_total": round(seconds, 3),
        "reset_s": round(sum(r.reset_s for r in records), 3),
        "physics_s": round(sum(r.physics_s for r in records), 3),
        "render_s": round(sum(r.render_s for r in records), 3),
        "policy_s": round(float(calls_ms.sum()) / 1e3, 3),
        "control_steps": steps,
        "control_steps_per_s": round(steps / seconds, 2) if seconds else None,
        "policy_ms": dict(zip(("p50", "p90", "p99"), percentiles, strict=True)),
    }


def headline(report: Mapping[str, Any]) -> str:
    """Return the result in eval.json in lines of text: never a rate without its interval and n."""
    lines = []
    for row in report["per_suite"]:
        counts = f"{row['successes']} of {row['n']} episodes{_interval(row)}"
        lines.append(f"{row['suite']}: success in {counts}, {_errors(row)}")
    if report.get("held_out"):
        lines.append(f"  {on_held_out(report['held_out'])}")
    for row in report.get("conditions", ()):
        amount = "" if row["amount"] is None else f" {amount_text(row['amount'])}"
        name = "+".join(condition_parts(row["condition"]))
        lines.append(f"  {name}{amount}: {row['successes']} of {row['n']}{_interval(row)}, {_errors(row)}")
    if words := whether_it_looks(report):
        lines.append(words)
    if report.get("init_states_demonstrated"):
        lines.append(seen_before(report))
    return "\n".join(lines)


def _interval(row: Mapping[str, Any]) -> str:
    if not row["n"]:
        return ""
    return f" = {row['success_rate']:.1%} (95 %: {row['wilson_low']:.1%} to {row['wilson_high']:.1%})"


def _errors(row: Mapping[str, Any]) -> str:
    text = f"{row['policy_errors']} policy errors, {row['errors']} errors"
    return text + (f" (counted as failures: {row['worst_case_rate']:.1%})" if row["errors"] else "")


def whether_it_looks(report: Mapping[str, Any]) -> str | None:
    """Return in words what the evaluation with blanked cameras shows; None without one."""
    rows = report.get("conditions", ())
    blind = next((row for row in rows if "blank_cameras" in condition_parts(row["condition"])), None)
    if blind is None or not blind["n"] or not report["n"]:
        return None
    counts = f"With its cameras blanked it succeeds in {blind['successes']} of {blind['n']} episodes"
    if blind["condition"] != "blank_cameras":
        counts += f" ({', '.join(condition_parts(blind['condition']))})"
    seeing = blind["lost"] + blind["successes"] - blind["gained"]  # successes with cameras, of the same episodes
    if binomtest(seeing, max(seeing, 1)).pvalue >= SIGNIFICANT:
        return f"{counts}, and with them in {seeing}: too few to tell whether it looks."
    if blind["p_value"] >= SIGNIFICANT or blind["gained"] >= blind["lost"]:
        return f"{counts}, no fewer than chance allows: it replays a memory, and nothing here shows that it looks."
    if blind["successes"]:
        return f"{counts}: it uses them, but these can be had without."
    return f"{counts}: it depends on them."


def on_held_out(row: Mapping[str, Any]) -> str:
    """Return the result on the tasks that the policy did not learn from."""
    return f"of them, on tasks that it did not learn from: {row['successes']} of {row['n']}{_interval(row)}"


def seen_before(report: Mapping[str, Any]) -> str:
    """Return the warning that episodes began where demonstrations did."""
    seen = report["init_states_demonstrated"]
    return f"{seen} of the {report['episodes']} episodes began in an init state that a demonstration was recorded from."
