"""eval_info.json has lerobot-eval's layout, and eval.json's figures."""

import json
from pathlib import Path

import numpy as np

from pipeline.rollout.export import eval_info, write_eval_info
from pipeline.rollout.metrics import summary
from tests.rollout.make import record

MEANS = {"avg_sum_reward", "avg_max_reward", "pc_success", "n_episodes", "video_paths", "predicted_video_paths"}
RECORDS = [
    record("success", task=3, episode=0, video="videos/a.mp4"),
    record("failure", task=3, episode=1),
    record("policy_error", task=0, episode=0),
    record("error", task=0, episode=1),
    record("success", task=0, episode=2, seconds=3.0),
    record("success", task=1, episode=0, suite="libero_goal", video="videos/b.mp4"),
]


def test_the_layout_is_lerobots(tmp_path: Path) -> None:
    path = write_eval_info(tmp_path, RECORDS)
    assert path == tmp_path / "eval_info.json"
    found = json.loads(path.read_text())
    assert set(found) == {"per_task", "per_group", "overall"}
    assert [(row["task_group"], row["task_id"]) for row in found["per_task"]] == [
        ("libero_goal", 1),
        ("libero_spatial", 0),
        ("libero_spatial", 3),
    ]
    for row in found["per_task"]:
        assert set(row) == {"task_group", "task_id", "metrics"}
        lists = row["metrics"]
        assert set(lists) == {"sum_rewards", "max_rewards", "successes", "video_paths", "predicted_video_paths"}
        assert all(isinstance(success, bool) for success in lists["successes"])
        assert lists["sum_rewards"] == lists["max_rewards"] == [float(success) for success in lists["successes"]]
    assert all(set(row) == MEANS for row in found["per_group"].values())
    assert set(found["overall"]) == MEANS | {"eval_s", "eval_ep_s"}


def test_the_figures_are_ours(tmp_path: Path) -> None:
    found, ours = eval_info(RECORDS, tmp_path), summary(RECORDS)
    for row in ours["per_suite"]:
        theirs = found["per_group"][row["suite"]]
        assert (theirs["n_episodes"], theirs["pc_success"]) == (row["n"], 100 * row["success_rate"])
    for row, theirs in zip(ours["per_task"], found["per_task"], strict=True):
        assert (row["suite"], row["task"]) == (theirs["task_group"], theirs["task_id"])
        assert np.mean(theirs["metrics"]["successes"]) == row["success_rate"]
    assert found["overall"]["n_episodes"] == ours["n"] == 5, "the simulator's error is no episode"
    assert found["overall"]["eval_s"] == 23.0 and found["overall"]["eval_ep_s"] == 23.0 / 5
    assert found["overall"]["video_paths"] == [str(tmp_path / "videos/b.mp4"), str(tmp_path / "videos/a.mp4")]
