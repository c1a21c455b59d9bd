"""Benchmarks run, on tiny sizes, and write what their documents quote."""

import json
from pathlib import Path

import pytest

from benchmarks import render, suites

pytestmark = [pytest.mark.slow, pytest.mark.sim]


def test_suites(tmp_path: Path) -> None:
    page = tmp_path / "suites.md"
    page.write_text(f"before\n{suites.BEGIN}old\n{suites.END}after\n")
    argv = ["--suites", "libero_goal", "--tasks", "0", "5", "--workers", "2", "--out", str(tmp_path / "suites.json")]
    suites.main([*argv, "--page", str(page)])
    result = json.loads((tmp_path / "suites.json").read_text())
    assert [(row["suite"], row["task"]) for row in result["tasks"]] == [("libero_goal", 0), ("libero_goal", 5)]
    (summary,) = result["suites"]
    assert summary["tasks"] == 2
    assert 200 < summary["resident_mb_max"] <= summary["peak_mb_max"] <= 900
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert f"| libero_goal | 2 | {summary['build_s']} |" in text
    assert "| libero_goal 5 |" in text


def test_render(tmp_path: Path) -> None:
    render.main(["--suites", "libero_object", "--images", "1", "--out", str(tmp_path / "render.json")])
    found = json.loads((tmp_path / "render.json").read_text())["libero_object"]
    assert found["full_over_fast"] > 1 or "llvmpipe" not in found["renderer"]
    for camera in ("agentview", "eye_in_hand"):
        assert 0 < found["fast_difference"][camera] < 6
        assert 0 < found["texture_difference"][camera] < 2
