"""Read what the report is made of. A file that is missing is an error that names the stage that makes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.rollout.results import EpisodeRecord, read_records

EVAL_KEYS = (
    *("suite", "episodes", "n", "successes", "failures", "policy_errors", "errors"),
    *("success_rate", "wilson_low", "wilson_high", "worst_case_rate", "protocol", "timings"),
)


@dataclass(frozen=True)
class Inputs:
    """Contents of the files of one run.

    Attributes:
        results: eval.json.
        records: episodes.jsonl, whose videos are relative to `directory`.
        training: train.json of the policy; None for an agent that was not trained.
    """

    experiment: str
    directory: Path
    results: Mapping[str, Any]
    records: tuple[EpisodeRecord, ...]
    training: Mapping[str, Any] | None

    @property
    def agent(self) -> Mapping[str, Any]:
        """Who was evaluated."""
        return self.results["protocol"].get("agent", {})

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """How the policy was trained; None for an agent that was not, or where nothing tells."""
        return (self.training or {}).get("recipe") or self.agent.get("recipe")


def read_inputs(experiment: str, results: Path, training: Path | None) -> Inputs:
    """Read all files.

    Raises:
        DataError: a file is missing, damaged or incomplete; the message names the command that makes it.
    """
    return Inputs(
        experiment=experiment,
        directory=results,
        results=read_json(results / "eval.json", (*EVAL_KEYS, "per_task"), "dvc repro eval_libero"),
        records=tuple(read_records(results / "episodes.jsonl")),
        training=None if training is None else read_json(training, ("epochs", "wall_s"), "dvc repro train_flow"),
    )


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
