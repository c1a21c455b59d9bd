"""An evaluation and its conditions, from the first episode to the published directory."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from pipeline.compute import Compute, kept_workers
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.errors import SimulatorError
from pipeline.files import publish_directory, refuse_foreign, require_writable, restore_directory
from pipeline.provenance import provenance, versions
from pipeline.rollout.conditions import baseline
from pipeline.rollout.engine import Evaluation, evaluate, simulators
from pipeline.rollout.export import EVAL_INFO
from pipeline.rollout.figures import METRICS, TASKS, write_figures
from pipeline.rollout.metrics import held_out, paired, rates, summary, timings
from pipeline.rollout.results import EpisodeRecord, write_records

log = logging.getLogger(__name__)
Other = tuple[str, list[EpisodeRecord]]  # a condition, and its episodes
PUBLISHED = {"eval.json", METRICS, TASKS, "episodes.jsonl", "videos", "conditions", EVAL_INFO}


@dataclass(frozen=True)
class Training:
    """What an agent learnt from, as far as its results are to be read by it.

    Attributes:
        tasks: per suite the ids, None for all; None for an agent that learnt nothing.
        init_rows: that its demonstrations began in; None if not known.
    """

    tasks: Mapping[str, Sequence[int] | None] | None = None
    init_rows: range | None = None


def run(
    evaluation: Evaluation,
    conditions: Mapping[str, float | None],
    condition_episodes: int | None,
    compute: Compute,
    scratch: Path,
    out: Path,
    training: Training,
) -> dict[str, Any]:
    """Evaluate, plain and under each condition; publish all in `out`; return eval.json.

    Args:
        condition_episodes: of a task under each condition; None: all.
        scratch: directory of unfinished work, which is gone on with.

    Raises:
        DataError: `out` holds something else.
        SimulatorError: no episode came to an end.
        PipelineError: see `evaluate`.
    """
    restore_directory(out)
    refuse_foreign(out, PUBLISHED)
    require_writable(out.parent)
    work = scratch.resolve() / evaluation.fingerprint()
    started, before = perf_counter(), resumed(work)
    others: dict[Path, Other] = {}
    with kept_workers():
        records = evaluate(evaluation, compute, work)
        refuse_all_errors(records, work)
        for name, amount in conditions.items():
            log.info("condition %s", name)
            other = replace(
                evaluation,
                episodes=min(evaluation.episodes, condition_episodes or evaluation.episodes),
                settings=replace(evaluation.settings, condition=name, amount=amount),
            )
            place = work.with_name(other.fingerprint())
            others[place] = name, evaluate(other, compute, place)
    rows = training.init_rows
    report = {
        **summary(records),
        "conditions": compared(records, dict(others.values()), conditions),
        "held_out": held_out(records, training.tasks) if training.tasks is not None else None,
        "init_states_demonstrated": None if rows is None else sum(record.init_row in rows for record in records),
        "protocol": protocol(evaluation, work),
        "versions": versions(),
        "timings": {
            "wall_s": round(perf_counter() - started, 1),
            "episodes_resumed": before,
            **timings(records),
        },
        "provenance": provenance(),
    }
    publish(records, report, work, out, others)
    return report


def compared(
    plain: list[EpisodeRecord], others: Mapping[str, list[EpisodeRecord]], asked: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Return a row of eval.json for each condition: its rates, and the episodes lost and gained to its baseline."""
    return [
        {
            "condition": name,
            "amount": asked[name],
            **rates(rows),
            "against": (base := baseline(name, asked)),
            **paired(others.get(base, plain), rows),
        }
        for name, rows in others.items()
    ]


def resumed(work: Path) -> int:
    """Return how many episodes a run before has finished."""
    journal = work / "episodes.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def protocol(evaluation: Evaluation, work: Path) -> dict[str, Any]:
    """Return every setting that the result was obtained with, asked for and used."""
    return {
        **evaluation.describe(),
        "transform": TRANSFORM_ID,
        "order": "seed, reset, set init state, settle; seeded before every reset",
        "success": "at any control step; ends the episode",
        "errors": "of the policy: failures; of simulator, server and machine: run once more, then reported apart",
        "interval": "Wilson, 95 %",
        "simulators": simulators(work),
    }


def refuse_all_errors(records: list[EpisodeRecord], work: Path) -> None:
    """Raise SimulatorError if no episode came to an end: that is no result. The next run starts afresh."""
    if records and all(r.outcome == "error" for r in records):
        kept = work / "episodes.failed.jsonl"
        (work / "episodes.jsonl").replace(kept)
        raise SimulatorError(f"all {len(records)} episodes ended in an error, first: {records[0].error}. See {kept}")


def publish(
    records: list[EpisodeRecord], report: dict[str, Any], work: Path, out: Path, others: dict[Path, Other]
) -> None:
    """Put the results in place, whole or not at all; then drop the unfinished work."""
    partial_out = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    write_episodes(records, work, partial_out)
    (partial_out / "conditions").mkdir()
    for place, (condition, changed_records) in others.items():
        write_episodes(changed_records, place, partial_out / "conditions" / condition)
    (partial_out / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
    write_figures(partial_out, report)
    publish_directory(partial_out, out)
    for place in (work, *others):
        shutil.rmtree(place)


def write_episodes(records: list[EpisodeRecord], work: Path, out: Path) -> None:
    """Write episodes.jsonl and videos/."""
    (out / "videos").mkdir(parents=True)
    write_records(out / "episodes.jsonl", records)
    for record in records:
        if record.video:
            shutil.copyfile(work / record.video, out / record.video)
