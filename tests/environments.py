"""Environments of their own, for packages of others that ours cannot hold."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def environment(folder: Path, *packages: str, seconds: float = 300) -> Path:
    """Return the Python of a new environment with these packages; skip the test where there is no way to them."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed")
    python = folder / "bin/python"
    for command in (
        ["venv", "-q", "--python", sys.executable, str(folder)],
        ["pip", "install", "-q", "--python", str(python), *packages],
    ):
        done = subprocess.run([uv, *command], capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            pytest.skip(f"no package registry: {done.stderr.strip()[-300:]}")
    return python
