"""The README is true: its commands are run by tests, its paths exist, its figures are those that the stages wrote."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from pipeline.config import load
from pipeline.libero.installation import own_digest
from pipeline.report.markdown import fill
from pipeline.rollout.metrics import wilson
from stages.cli import changes
from tests.encode import tiny
from tests.imports import ROOT
from tests.inference import make

TEXT = (ROOT / "README.md").read_text()
# Commands that other tests run in full, as a user would, by the file that does.
RUN_ELSEWHERE = {
    "make test": ".ci/run",
    "make repro": "tests/test_pipeline.py",
    "python -m stages.demos": "tests/stages/test_demos.py",
    "python -m stages.embed": "tests/stages/test_embed.py",
    "accelerate launch stages/train_flow.py": "tests/stages/test_train_flow.py",
    "python -m stages.eval_libero": "tests/stages/test_eval_libero.py",
    "python -m stages.report": "tests/stages/test_report.py",
    "python -m stages.act --demo FILE_demo.hdf5 --step 40 --samples 5 --plot chunk.html": "tests/stages/test_act.py",
    "python -m stages.serve": "tests/stages/test_serve.py",
    "python -m stages.export_onnx": "tests/stages/test_export_onnx.py",
    "python -m stages.push runs/flow/policy user/name": "tests/stages/test_push.py",
    "python -m stages.eval_libero --agent ws://127.0.0.1:8000 --set sim.image_size=256 --set sim.render=full": (
        "tests/stages/test_eval_agents.py"
    ),
    "python -m stages.eval_libero --agent my_package.my_module:MyAgent --export lerobot": (
        "tests/stages/test_eval_agents.py"
    ),
}


def commands(text: str = TEXT) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def test_every_command_is_run_by_a_test() -> None:
    for command in commands():
        if command.startswith("python -m pipeline.config"):
            continue
        assert command in RUN_ELSEWHERE, f"README.md: no test runs: {command}"
        text = (ROOT / RUN_ELSEWHERE[command]).read_text()
        for word in shlex.split(command):
            named = word.startswith("--") or word.endswith(".yaml")
            assert not named or Path(word).name in text, f"{RUN_ELSEWHERE[command]} does not use {word}"
    assert RUN_ELSEWHERE.keys() <= set(commands())


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


STAGES = sorted({c for text in PAGES for c in commands(text) if re.search(r"-m stages\.\w+ ", c)})


class Parsed(Exception):
    """Ends a stage once its arguments are read."""


@pytest.mark.parametrize("command", STAGES)
def test_stages_take_the_arguments_that_documents_give_them(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parsed(*args: Any) -> None:
        found = parse(*args)
        monkeypatch.undo()
        load(ROOT / "params.yaml", changes(getattr(found, "set", [])))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    name, words = re.search(r"-m stages\.(\w+) (.*)", command).groups()  # type: ignore[union-attr]
    with pytest.raises(Parsed):
        import_module(f"stages.{name}").main(shlex.split(words))


def test_paths_that_are_named_exist() -> None:
    named = re.findall(r"`((?:cache|pipeline|stages|configs|tests|docs|benchmarks|examples)/[\w/.-]*)`", TEXT)
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
    result, parameters = trained["evaluation"], trained["trainable_parameters"]["total"]
    solved, took = rate(result["successes"], result["n"]), f"{trained['wall_s']:.0f} s, 2 CPU cores"
    assert f"| {solved} | {parameters / 1e6:.1f}M | {took} |" in TEXT
    (blanked,) = result["conditions"]
    assert blanked["condition"] == "blank_cameras"
    assert f"The quickstart's policy, its cameras blanked, solves {rate(blanked['successes'], blanked['n'])}" in TEXT
    used = result["protocol"]["sim"]
    assert (used["assets"], used["render"]) == (own_digest(), "fast"), "measured in LIBERO's own scenes"


def test_figures_of_all_ten_tasks_are_what_the_stages_wrote() -> None:
    trained = figures("spatial_scripted")
    result, made = trained["evaluation"], trained["recipe"]["demonstrations"]
    parameters = f"{trained['trainable_parameters']['total'] / 1e6:.1f}M"
    solved, took = rate(result["successes"], result["n"]), f"{trained['wall_s'] / 60:.0f} min, 2 CPU cores"
    assert f"{made['learnt'] + made['validation']:,}, scripted | 500 | {solved} | {parameters} | {took} |" in TEXT
    changed = {row["condition"]: rate(row["successes"], row["n"]) for row in result["conditions"]}
    assert f"the ten tasks' policy solves {changed['displaced']}; blanked besides" in TEXT
    assert f"blanked besides, {changed['displaced+blank_cameras']}." in TEXT
    count = {row["condition"]: row["successes"] for row in result["conditions"] if row["n"] == 100}
    light, moved, words = (count[name] for name in ("light", "moved_camera", "paraphrased_instruction"))
    told = f"{light} of 100, with the camera 3 cm elsewhere {moved}, told in other words {words}."
    assert f"In half the light it solves {told}" in TEXT
    before = figures("spatial_scripted-against-random_weights")["rows"][0]
    displaced = next(c for c in before["conditions"] if c["condition"] == "displaced")
    told = f"{before['successes']} of {before['n']}, displaced {displaced['successes']} of {displaced['n']}."
    assert before["name"] == "random_weights" and f"an encoder of random weights: {told}" in TEXT
    used = result["protocol"]["sim"]
    assert (used["assets"], used["render"]) == (own_digest(), "fast"), "measured in LIBERO's own scenes"


def test_figures_of_the_overfit_are_what_the_stages_wrote() -> None:
    trained, text = figures("single_task_overfit_scripted"), (ROOT / "docs/experiments.md").read_text()
    (last,) = (entry for entry in trained["epochs"] if entry["epoch"] == 499)
    assert last["train_loss"] < 0.01 and last["train_action_mse"] < 0.001, "the reference's criteria"
    high = [e["epoch"] for e in trained["epochs"] if (e.get("train_action_mse") or 0) >= 0.001]
    assert f"below 0.001 from epoch {max(high) + 10} on" in text  # it is measured every tenth epoch
    result = trained["evaluation"]
    assert f"it solves {rate(result['successes'], result['n'])}" in text
    assert f"Training took {trained['wall_s'] / 60:.0f} minutes" in text
    assert result["protocol"]["sim"]["assets"] == own_digest(), "measured in LIBERO's own scenes"


def test_three_seeds_are_what_the_stages_wrote() -> None:
    rows = {row["name"]: row for row in figures("quickstart-against-random_weights")["rows"]}
    seeds = [rows[name] for name in ("libero_clip", "libero_clip-1", "libero_clip-2")]
    solved, n = (sum(row[name] for row in seeds) for name in ("successes", "n"))
    assert f"Three training seeds solve {rate(solved, n)}" in TEXT
    light = {
        name: next((c["successes"] for c in row["conditions"] if (c["condition"], c["n"]) == ("light", 20)), None)
        for name, row in rows.items()
    }
    first, second, third = (light[row["name"]] for row in seeds)
    assert f"never showed, {first}, {second} and {third} of 20, and two seeds that learn" in TEXT
    assert f"too, {light['libero_clip-views']} and {light['libero_clip-views-2']}. Rows 0 to 19" in TEXT


def test_rates_are_what_the_benchmarks_wrote() -> None:
    train, peers = (json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("train", "peers"))
    cached, ours = median(train["samples_per_s"]["resident"]), peers["ours"]["samples_per_s"]
    assert f"in every step | {train['online']['samples_per_s']:.1f} | **{cached:,.0f}** |" in TEXT
    for name, peer in (("ACT", "act"), ("Diffusion Policy", "diffusion")):
        assert f"{name}, from pixels | {peers[peer]['samples_per_s']:.1f} | **{ours:,.0f}** |" in TEXT
        side, compared = peers[peer], peers["compared"][peer]
        error, at = min((error, seconds) for seconds, error in side["curve"])
        judged = f"{side['evaluation']['successes']} of {side['evaluation']['n']}, "
        alone, whole = compared["seconds_ours"], compared["seconds_ours_with_embedding"]
        told = (
            f"| {name} | {side['parameters'] / 1e6:.0f} M | {side['samples_per_s']:.1f} | "
            f"{error:.3f} after {at:.0f} s | "
            f"{alone:.0f} s, or {whole:.0f} s with the embedding | {judged}"
        )
        assert told in (ROOT / "docs/training.md").read_text()


def test_the_snippet_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.register(tmp_path)
    make.bundle(tmp_path / "runs/flow/policy")
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict[str, Any] = {"observation": make.observation()}
    exec(snippet, names)
    assert names["actions"].shape == (names["policy"].horizon, 7) and np.isfinite(names["actions"]).all()


def test_the_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: p.name)
def test_tables_are_what_the_stage_makes_of_the_committed_figures(page: Path) -> None:
    text = page.read_text()
    assert fill(text, ROOT) == text, f"run: python -m pipeline.report.markdown {page.relative_to(ROOT)}"
