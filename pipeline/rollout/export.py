"""Results as LeRobot's `lerobot-eval` writes them: eval_info.json, for whoever reads that.

Layout: huggingface/lerobot, scripts/lerobot_eval.py. The reward of a LIBERO episode is 1 in the step that solves it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.files import write_atomic
from pipeline.rollout.results import EpisodeRecord

EVAL_INFO = "eval_info.json"


def write_eval_info(out: Path, records: Sequence[EpisodeRecord]) -> Path:
    """Write eval_info.json into the results of an evaluation; return its path."""
    path = out / EVAL_INFO
    write_atomic(path, json.dumps(eval_info(records, out), indent=2) + "\n")
    return path


def eval_info(records: Sequence[EpisodeRecord], out: Path) -> dict[str, Any]:
    """Return per_task, per_group (suites) and overall.

    Episodes that ended in an `error` are left out, as in eval.json; a policy's errors are failures. eval_s is the
    episodes' own time, which was shared among the workers.

    Args:
        out: directory that the records' videos are in.
    """
    ordered = [r for r in sorted(records, key=lambda r: r.key) if r.outcome != "error"]
    tasks = [list(group) for _, group in groupby(ordered, key=lambda r: (r.suite, r.task))]
    suites = {name: list(group) for name, group in groupby(ordered, key=lambda r: r.suite)}
    seconds = sum(r.seconds for r in ordered)
    return {
        "per_task": [
            {"task_group": group[0].suite, "task_id": group[0].task, "metrics": _lists(group, out)} for group in tasks
        ],
        "per_group": {name: _means(group, out) for name, group in suites.items()},
        "overall": {
            **_means(ordered, out),
            "eval_s": seconds,
            "eval_ep_s": seconds / max(1, len(ordered)),
        },
    }


def _lists(records: Sequence[EpisodeRecord], out: Path) -> dict[str, list[Any]]:
    successes = [r.outcome == "success" for r in records]
    rewards = [float(success) for success in successes]
    return {
        "sum_rewards": rewards,
        "max_rewards": rewards,
        "successes": successes,
        "video_paths": [str(out / r.video) for r in records if r.video],
        "predicted_video_paths": [],
    }


def _means(records: Sequence[EpisodeRecord], out: Path) -> dict[str, Any]:
    lists: Mapping[str, list[Any]] = _lists(records, out)
    n = len(records)
    rate = sum(lists["successes"]) / n if n else math.nan
    return {
        "avg_sum_reward": rate,
        "avg_max_reward": rate,
        "pc_success": 100 * rate,
        "n_episodes": n,
        "video_paths": lists["video_paths"],
        "predicted_video_paths": [],
    }
