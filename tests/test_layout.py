"""The rules of the layout: who imports whom, names, and that dvc.yaml knows every module a stage uses."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.imports import PACKAGES, ROOT, closure, imported

STAGES = {"demos", "embed", "train_flow", "export_onnx", "eval_libero", "report"}
# Stages that are others again, for other policies.
COMPARING = {
    "train_variant": "train_flow",
    "eval_variant": "eval_libero",
    "eval_steps": "eval_libero",
    "compare": "compare",
}
# Settings reach a stage as DVC params. These files carry them (as does each settings.py), spread work, write files,
# fetch what is pinned, keep memory, report errors and stamp results.
NOT_DEPS = (
    "cache/errors.py",
    "pipeline/compute.py",
    "pipeline/config",
    "pipeline/errors.py",
    "pipeline/files.py",
    "pipeline/hub.py",
    "pipeline/memory.py",
    "pipeline/provenance.py",
    "pipeline/ranges.py",
    "pipeline/seal.py",
    "stages/cli.py",
)


def is_not_dep(path: Path) -> bool:
    return str(path).startswith(NOT_DEPS) or path.name == "settings.py"


def test_every_room_has_its_place_among_the_layers() -> None:
    """`make lint` enforces the order (import-linter); here: that it leaves no room out."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {name.strip() for layer in contracts[0]["layers"] for name in re.split("[|:]", layer)}
    rooms = {f"pipeline.{p.stem}" for p in (ROOT / "pipeline").iterdir() if p.name[0] not in "_."}
    assert named == rooms | {"cache", "stages"}


def test_a_stage_imports_no_other_stage() -> None:
    for path in sorted((ROOT / "stages").glob("*.py")):
        others = {name for name in imported(path.relative_to(ROOT)) if name.startswith("stages.")}
        assert others <= {"stages.cli"}, path


def test_stage_names_shadow_no_installed_module() -> None:
    """`accelerate launch stages/train_flow.py` puts stages/ first on the path."""
    installed = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    ours = {p.stem for p in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert not ours & (installed - set(PACKAGES))
    assert ours >= STAGES


@pytest.mark.parametrize(("stage", "module"), sorted({**{stage: stage for stage in STAGES}, **COMPARING}.items()))
def test_dvc_stage_lists_every_module_it_uses(stage: str, module: str) -> None:
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    deps = set(entry["deps"])
    assert f"stages.{module}" in entry["cmd"]
    for path in closure(Path("stages") / f"{module}.py", is_not_dep):
        covering = {str(path), *(str(parent) for parent in path.parents)}
        assert covering & deps, f"{path} is missing in dvc.yaml, stage {stage}, deps"
    for dep in deps:
        if dep.startswith(PACKAGES):
            assert (ROOT / dep).exists(), f"dvc.yaml, stage {stage}: {dep} does not exist"


def test_embed_does_not_depend_on_the_policy() -> None:
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["embed"]
    assert not any("policy" in dep or "train" in dep for dep in entry["deps"])
    assert not any(name.startswith(("policy", "train", "eval", "compute")) for name in entry["params"])


def test_the_pictures_of_the_architecture_name_what_is_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    drawn = re.findall(r"(?m)^ *(\w+) +([\w/]+\.py) ", text)
    assert len(drawn) == 18
    for name, path in drawn:
        assert re.search(rf"(?m)^ *(def|class) {name}\b", (ROOT / path).read_text()), f"{path} has no {name}"
    for path in re.findall(r"`((?:pipeline|cache|tests)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
