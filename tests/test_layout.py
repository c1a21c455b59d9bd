"""The rules of the layout: who imports whom, names, and that dvc.yaml knows every module a stage uses."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
import yaml

from tests.imports import PACKAGES, ROOT, closure, imported

STAGES = {"demos", "embed", "train_flow", "eval_libero", "report"}
# Stages that are others again, for other policies.
COMPARING = {
    "train_variant": "train_flow",
    "eval_variant": "eval_libero",
    "eval_steps": "eval_libero",
    "compare": "report",
}
# Settings reach a stage as DVC params. These carry them, spread work, write files, keep memory, report errors and stamp
# results.
NOT_DEPS = (
    "cache/errors.py",
    "pipeline/compute.py",
    "pipeline/config",
    "pipeline/errors.py",
    "pipeline/files.py",
    "pipeline/memory.py",
    "pipeline/provenance.py",
    "stages/cli.py",
)


def is_not_dep(path: Path) -> bool:
    return str(path).startswith(NOT_DEPS)


def sources() -> list[Path]:
    return [p.relative_to(ROOT) for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


def test_imports_point_one_way() -> None:
    allowed = {"cache": {"cache"}, "pipeline": {"pipeline", "cache"}, "stages": {"stages", "pipeline", "cache"}}
    for path in sources():
        for name in imported(path):
            assert name.split(".")[0] in allowed[path.parts[0]], f"{path} imports {name}"
            if path.parts[0] == "stages" and name.startswith("stages."):
                assert name in ("stages.cli",) or name.startswith("stages.cli."), f"{path} imports stage {name}"


def test_cache_knows_neither_torch_nor_libero() -> None:
    import ast

    for path in (p for p in sources() if p.parts[0] == "cache"):
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("torch", "open_clip", "libero", "robosuite", "mujoco"), (path, name)


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
