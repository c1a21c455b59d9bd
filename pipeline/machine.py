"""What this machine has of what the pipeline needs, and how to get what it lacks."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pipeline.compute import cores
from pipeline.errors import PipelineError
from pipeline.libero import installation
from pipeline.libero.sim import gl

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
PYTHONS = ((3, 11), (3, 12), (3, 13))
DRIVER_FOR_CUDA = {11: 450, 12: 525, 13: 580}
"""The oldest Linux driver series for programs built with a CUDA version (NVIDIA's "CUDA Compatibility" table)."""
DISK_GB, MEMORY_GB = 10, 6  # what the quickstart takes, its workers included
NAMED = 5  # packages that a line names, of many
SETUP = "rm -f .venv/.ready && make setup"

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `error`: the quickstart cannot run without it. `remedy` is empty for ok."""

    what: str
    status: Status
    found: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything, in turn."""
    for check in (python, packages, *LIBERO_CHECKS, opengl, gpu, memory, disk, hub):
        yield _safely(check)


def _safely(check: Callable[[], Finding]) -> Finding:
    """A package that is broken, in whatever way, is a finding."""
    try:
        return check()
    except Exception as error:
        return Finding(check.__name__, "error", f"{type(error).__name__}: {error}", SETUP)


def python() -> Finding:
    """Which Python runs this."""
    found = f"{platform.python_version()}, {cores()} cores"
    if sys.version_info[:2] in PYTHONS:
        return Finding("Python", "ok", found)
    names = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    return Finding("Python", "error", found, f"Use one of {names}: make setup PYTHON=/path/to/python3.12")


def packages(requirements: Path = REQUIREMENTS) -> Finding:
    """Whether what is installed is what requirements.txt pins."""
    wrong = []
    pins = pinned(requirements.read_text())
    for name, wanted in pins.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is missing ({wanted})")
        else:
            if found.partition("+")[0] != wanted:  # +cpu and the like: another build of the same release
                wrong.append(f"{name} is {found} ({wanted})")
    if not wrong:
        return Finding("Packages", "ok", f"all {len(pins)} as in requirements.txt")
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return Finding("Packages", "error", ", ".join(wrong[:NAMED]) + more, SETUP)


def pinned(text: str) -> dict[str, str]:
    """Return the versions that a compiled requirements file pins for this Python and system."""
    from packaging.requirements import Requirement

    found = {}
    for line in text.splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            requirement = Requirement(line.rstrip(" \\"))
            if requirement.marker is None or requirement.marker.evaluate():
                found[requirement.name] = next(iter(requirement.specifier)).version
    return found


def _libero(kind: str) -> Callable[[], Finding]:
    """Whether LIBERO's files of one kind are its own; they are hashed anew."""

    def check() -> Finding:
        what = f"LIBERO's {kind}"
        try:
            installation.check_versions()
            found = installation.compare_installed(kind, anew=True)
        except PipelineError as error:
            return Finding(what, "error", str(error))
        number = len(installation.manifest()[installation.KINDS[kind]])
        if found.same:
            return Finding(what, "ok", f"all {number} as in LIBERO's repository (manifest.json)")
        return Finding(what, "error", f"{found.directory}: of {number} {found.in_full()}", installation.REMEDY)

    return check


LIBERO_CHECKS = tuple(_libero(kind) for kind in installation.KINDS)


def opengl() -> Finding:
    """Which OpenGL backends draw."""
    works, fails = [], []
    for name in gl.CANDIDATES["auto"]:
        try:
            works.append(f"{name} ({gl.probe(name)})")
        except PipelineError as error:
            fails.append(str(error))
    found = ", ".join(works) + ("; " if works and fails else "") + ", ".join(fails)
    if works:
        return Finding("OpenGL", "ok", found)
    return Finding("OpenGL", "error", found, f"apt-get install -y {' '.join(gl.DEBIAN_PACKAGES)}")


def gpu() -> Finding:
    """Which GPUs torch sees, and whether a driver is too old for it."""
    import torch

    built = f"torch {torch.__version__}" + (f", CUDA {torch.version.cuda}" if torch.version.cuda else ", CPU only")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("GPU", "ok", f"{', '.join(names)}, driver {driver()}; {built}")
    installed = driver()
    if installed is None:
        return Finding("GPU", "ok", f"none, all runs on the CPU; {built}")
    if torch.version.cuda is None:
        remedy = "Install torch's CUDA build: .venv/bin/uv pip install --reinstall-package torch -r requirements.txt"
        return Finding("GPU", "warning", f"idle: driver {installed}, but {built}", remedy)
    needed = DRIVER_FOR_CUDA.get(int(torch.version.cuda.partition(".")[0]), 0)
    remedy = f"Update the driver to {needed} or newer, or install a torch built for an older CUDA (pytorch.org)."
    if int(installed.partition(".")[0]) >= needed:
        remedy = "torch does not see it: check CUDA_VISIBLE_DEVICES and nvidia-smi."
    return Finding("GPU", "warning", f"idle: driver {installed}; {built}", remedy)


def driver() -> str | None:
    """Return the version of NVIDIA's driver; None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = answer.stdout.split()
    return lines[0] if lines else None


def memory() -> Finding:
    """Whether memory suffices for the quickstart."""
    gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    enough = gb >= MEMORY_GB
    remedy = "" if enough else "Fewer workers take less: dvc exp run -S compute.workers=1"
    return Finding("Memory", "ok" if enough else "warning", f"{gb:.0f} GB", remedy)


def disk(directory: Path | None = None) -> Finding:
    """Whether there is room for data and results."""
    directory = directory or Path.cwd()
    gb = shutil.disk_usage(directory).free / 1e9
    enough = gb >= DISK_GB
    remedy = "" if enough else f"Free {DISK_GB} GB, or work in a directory on another disk."
    return Finding("Disk", "ok" if enough else "warning", f"{gb:.0f} GB free in {directory}", remedy)


def hub() -> Finding:
    """Whether the Hugging Face hub answers."""
    from pipeline.hub import endpoint, require_hub

    try:
        require_hub()
    except OSError as error:
        remedy = (
            "Only experiment=libero_spatial and single_task_overfit need it: LIBERO's demonstrations, OpenAI's CLIP."
        )
        return Finding("Hugging Face hub", "warning", str(error), remedy)
    return Finding("Hugging Face hub", "ok", endpoint())
