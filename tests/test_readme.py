"""The README is true: its commands are run by tests, its paths exist, its figures are those that the stages wrote."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.libero.installation import own_digest
from pipeline.report.markdown import fill
from pipeline.rollout.metrics import wilson
from tests.imports import ROOT

TEXT = (ROOT / "README.md").read_text()
# Commands that other tests run in full, as a user would, by the file that does.
RUN_ELSEWHERE = {
    "make test": ".ci/run",
    "make repro": "tests/test_pipeline.py",
    "python -m stages.demos": "tests/stages/test_demos.py",
    "python -m stages.embed": "tests/stages/test_embed.py",
    "python -m stages.embed --verify": "tests/stages/test_embed.py",
    "python -m stages.embed --repair": "tests/stages/test_embed.py",
    "accelerate launch stages/train_flow.py": "tests/stages/test_train_flow.py",
    "accelerate launch -m stages.train_flow": "tests/test_pipeline.py",
    "accelerate launch --config_file configs/accelerate/cpu2.yaml -m stages.train_flow": (
        "tests/stages/test_train_flow.py"
    ),
    "python -m stages.eval_libero": "tests/stages/test_eval_libero.py",
    "python -m stages.eval_libero --agent replay": "tests/stages/test_eval_libero.py",
    "python -m stages.report": "tests/stages/test_report.py",
    "python -m stages.dataset libero_spatial": "tests/stages/test_dataset.py",
    "python -m cache info data/embeddings/libero_spatial.zarr": "tests/test_pipeline.py",
    "python -m cache verify data/embeddings/libero_spatial.zarr": "tests/test_pipeline.py",
}
NEEDS_TWO_GPUS = {"accelerate launch --config_file configs/accelerate/gpu2.yaml -m stages.train_flow"}


def commands(text: str = TEXT) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_command_is_run_by_a_test() -> None:
    for command in commands():
        if command.startswith("python -m pipeline.config") or command in NEEDS_TWO_GPUS:
            continue
        assert command in RUN_ELSEWHERE, f"README.md: no test runs: {command}"
        text = (ROOT / RUN_ELSEWHERE[command]).read_text()
        for word in shlex.split(command):
            named = word.startswith("--") or word.endswith(".yaml")
            assert not named or Path(word).name in text, f"{RUN_ELSEWHERE[command]} does not use {word}"
    assert len(commands()) >= len(RUN_ELSEWHERE)


DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = tuple(page.read_text() for page in DOCUMENTS)
COMPOSING = sorted({c for text in PAGES for c in commands(text) if c.startswith("python -m pipeline.config")})


@pytest.mark.parametrize("command", COMPOSING)
def test_composing_commands_work(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)[1:]
    if words[-1] != "-":  # wherever it would be written
        end = words.index("--output") if "--output" in words else len(words)
        words = [*words[:end], "--output", str(tmp_path / "params.yaml")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "experiment:" in (done.stdout if "-" in words else (tmp_path / "params.yaml").read_text())


def test_paths_that_are_named_exist() -> None:
    named = re.findall(r"`((?:cache|pipeline|stages|configs|tests|docs|benchmarks)/[\w/.-]*)`", TEXT)
    named += re.findall(r"\]\((docs/[\w/.-]+)\)", TEXT)
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), f"README.md names {name}"


def figures(name: str) -> dict:
    return json.loads((ROOT / "docs/results" / f"{name}.json").read_text())


def rate(successes: int, n: int) -> str:
    low, high = (f"{100 * bound:.1f}" for bound in wilson(successes, n))
    return f"**{successes} of {n}**, {low} to {high} %"


def test_figures_are_what_the_stages_wrote() -> None:
    trained = figures("quickstart")
    result = trained["evaluation"]
    assert f"| {rate(result['successes'], result['n'])} on init states 0-19 |" in TEXT
    assert f"{trained['steps']:,} steps, {trained['trainable_parameters']['total'] / 1e6:.1f}M parameters" in TEXT
    (blanked,) = result["conditions"]
    assert blanked["condition"] == "blank_cameras"
    assert f"With its cameras blanked it solves {rate(blanked['successes'], blanked['n'])}" in TEXT
    used = result["protocol"]["sim"]
    assert (used["assets"], used["render"]) == (own_digest(), "fast"), "measured in LIBERO's own scenes"


def test_three_seeds_are_what_the_stages_wrote() -> None:
    rows = figures("quickstart-against-flow")["rows"]
    assert [row["name"] for row in rows] == ["flow", "flow-1", "flow-2"]
    solved = [row["successes"] for row in rows]
    assert f"three training seeds solve {rate(sum(solved), sum(row['n'] for row in rows))}" in TEXT
    assert f"({solved[0]}, {solved[1]} and {solved[2]} of 20)" in TEXT


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: p.name)
def test_tables_are_what_the_stage_makes_of_the_committed_figures(page: Path) -> None:
    text = page.read_text()
    assert page.name != "README.md" or "<!-- table: " in text
    assert fill(text, ROOT) == text, f"run: python -m pipeline.report.markdown {page.relative_to(ROOT)}"


def test_expert_figures_are_what_the_benchmark_wrote() -> None:
    expert = figures("expert")
    assert f"{expert['successes']} of {expert['n']}" in TEXT
    for row in expert["per_task"]:
        assert f"| {row['task']} | {row['language']} | {row['successes']}/{row['n']} |" in TEXT
