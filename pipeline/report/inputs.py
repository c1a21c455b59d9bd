"""Read what the report is made of. A file that is missing is an error that names the stage that makes it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.rollout.results import EpisodeRecord, read_records

EVAL_KEYS = ("suite", "episodes", "n", "successes", "failures", "errors", "success_rate", "wilson_low", "wilson_high")
EXPERT_KEYS = ("suite", "rows", "per_task")


@dataclass(frozen=True)
class Inputs:
    """Contents of the result files.

    Attributes:
        results: eval.json.
        records: episodes.jsonl, whose videos are relative to `directory`.
        training: train.json of the policy; None for an agent that was not trained.
        overfit: train.json's content for the experiment single_task_overfit_scripted; None if it has not been run.
        expert: the scripted expert's success per task; None likewise.
        comparisons: what was compared in other experiments, by name.
        recording: wall times of the stages before training, by name; those that are known.
    """

    experiment: str
    directory: Path
    results: Mapping[str, Any]
    records: tuple[EpisodeRecord, ...]
    training: Mapping[str, Any] | None
    overfit: Mapping[str, Any] | None
    expert: Mapping[str, Any] | None
    comparisons: Mapping[str, Mapping[str, Any]]
    recording: Mapping[str, float]


def read_inputs(
    experiment: str,
    results: Path,
    training: Path | None,
    overfit: Path,
    expert: Path,
    comparisons: Sequence[Path],
    recording: Mapping[str, float],
) -> Inputs:
    """Read all files. `overfit` and `expert` may be missing.

    Raises:
        DataError: a file is missing, damaged or incomplete; the message names the command that makes it.
    """
    return Inputs(
        experiment=experiment,
        directory=results,
        results=read_json(
            results / "eval.json", (*EVAL_KEYS, "per_task", "protocol", "timings"), "dvc repro eval_libero"
        ),
        records=tuple(read_records(results / "episodes.jsonl")),
        training=None if training is None else read_json(training, ("epochs", "wall_s"), "dvc repro train_flow"),
        overfit=read_json(overfit, ("epochs", "wall_s"), "see README") if overfit.exists() else None,
        expert=read_json(expert, EXPERT_KEYS, "python -m benchmarks.expert") if expert.exists() else None,
        comparisons={p.stem: read_json(p, ("suite", "rows"), "stages.report --compare --record") for p in comparisons},
        recording=recording,
    )


def stage_seconds(demos: Path, embed: Path, suites: Sequence[str]) -> dict[str, float]:
    """Return the wall times that stages before training noted beside their outputs.

    A stage is missing where one of the suites has no note, or was interrupted: then nobody knows what it took in all.
    """
    found = {}
    for stage, name in (("demos", demos / "{}.provenance.json"), ("embed", embed / "{}.json")):
        paths = [Path(str(name).format(suite)) for suite in suites]
        took = [read_json(p, (), f"dvc repro -f {stage}").get("took", {}) if p.exists() else {} for p in paths]
        whole = all("seconds" in t and not (t.get("images_resumed") or t.get("episodes_resumed")) for t in took)
        if whole:
            found[stage] = sum(float(t["seconds"]) for t in took)
    return found


def read_json(path: Path, keys: tuple[str, ...], command: str) -> dict[str, Any]:
    """Return the JSON object in `path`, which must have `keys`; `command` is what makes the file."""
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Make it first: {command}") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}). Make it again: {command}") from None
    missing = [key for key in keys if not isinstance(tree, dict) or key not in tree]
    if missing:
        raise DataError(f"{path}: has no {missing[0]!r}. Make it again: {command}")
    return tree
