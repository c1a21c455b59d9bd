"""The command line that stages share: names, versions, quick answers; and the package that brings it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import stages.__main__ as dispatcher
from pipeline import __version__
from pipeline.errors import ConfigError
from stages import cli, doctor
from tests.imports import PACKAGES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {"torch", "open_clip", "zarr", "dask", "distributed", "mujoco", "accelerate"}


def test_help_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        dispatcher.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "usage: vla-flow" in text
    assert "  eval_libero   Stage three: roll the policy out" in text
    named = [line.split()[0] for line in text.partition("commands:\n")[2].splitlines()]
    assert named[:7] == ["doctor", "demos", "embed", "train_flow", "export_onnx", "eval_libero", "report"]
    assert not {"cli", "__main__", "__init__"} & set(named)


@pytest.mark.parametrize(("name", "meant"), [("embd", "embed"), ("train-flw", "train_flow")])
def test_a_misspelt_command_is_told_what_is_meant(name: str, meant: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        dispatcher.main([name])
    assert stopped.value.code == 2
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err


def test_a_command_is_given_the_other_arguments(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        dispatcher.main(["doctor", "--help"])
    assert capsys.readouterr().out.startswith("usage: python -m stages.doctor")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        dispatcher.main(["report", "--params", "nowhere.yaml"])
    assert stopped.value.code == "error: nowhere.yaml: not found. Run from the repository root, or make it: make params"


@pytest.mark.parametrize("name", ["pretrain_clip", "train_flow", "compare"])
def test_usage_names_the_command(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        dispatcher.main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m stages.{name} ")


@pytest.mark.parametrize("main", [dispatcher.main, doctor.main])
def test_the_version_is_the_package_s(main: object, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])  # type: ignore[operator]
    assert capsys.readouterr().out == f"vla-flow {__version__}\n"


@pytest.mark.parametrize(
    "name",
    [
        "cli",
        "__main__",
        "doctor",
        "demos",
        "embed",
        "train_flow",
        "eval_libero",
        "report",
        "dataset",
        "compare",
        "record",
        "serve",
    ],
)
def test_arguments_are_parsed_before_anything_heavy_is_imported(name: str) -> None:
    code = f"import sys, stages.{name}; print(*{HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("demos.episode=5", r"with demos\.episode=5: no setting 'demos\.episode'\. Did you mean 'episodes'\?"),
        ("policy.cameras=[wrist]", "'wrist'; it can have agentview, eye_in_hand"),
        ("demos.source=lerobot", r"demos\.source is \"lerobot\"; it can be scripted, path, official or own"),
        ("policy.condition_dim.x=3", "there is no policy.condition_dim.x: condition_dim is one value"),
        ("train_flow.epochs", "not KEY=VALUE"),
        ("train_flow.epochs=[", r"--set train_flow\.epochs=\[: not valid YAML"),
        ("embed.grid={size: 3, size: 5}", "size is there twice"),
        ("embed.grid.sise=3", r"no setting 'embed\.grid\.sise'\. Did you mean 'size'"),
    ],
)
def test_a_wrong_set_is_told_what_to_write(given: str, message: str) -> None:
    args = cli.parser(None).parse_args(["--params", str(ROOT / "params.yaml"), "--set", given])
    with pytest.raises(ConfigError, match=message):
        cli.settings(args)


def test_pyproject_asks_for_what_requirements_in_names() -> None:
    lines = (ROOT / "requirements.in").read_text().splitlines()
    named = [line for line in lines if line and not line.startswith("#")]
    project = PROJECT["project"]
    assert sorted(project["dependencies"] + project["optional-dependencies"]["dev"]) == sorted(named)


def test_the_package_holds_every_file_of_its_directories() -> None:
    endings = {f"*{p.suffix}" for package in PACKAGES for p in (ROOT / package).rglob("*.*") if p.is_file()}
    assert endings - {"*.py", "*.pyc"} == set(PROJECT["tool"]["setuptools"]["package-data"]["*"])
