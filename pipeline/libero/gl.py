"""Choose the OpenGL backend that MuJoCo draws with, by trying it.

MuJoCo, PyOpenGL and robosuite each read the choice from the environment once, when imported; so `activate` comes first.
"""

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import SimulatorError

log = logging.getLogger(__name__)

CANDIDATES = {"auto": ("egl", "osmesa"), "egl": ("egl",), "osmesa": ("osmesa",)}
DEBIAN_PACKAGES = ("libosmesa6", "libegl1", "libgl1", "libegl-mesa0", "libglx-mesa0")
PROBE_TIMEOUT_S = 60.0
PROBE_MEMORY = "VLA_FLOW_GL"
"""Environment variable in which a result is handed to child processes: a probe costs a second or two."""


@dataclass(frozen=True)
class Backend:
    """What draws.

    Attributes:
        asked: the setting, "auto", "egl" or "osmesa".
        used: "egl" or "osmesa".
        renderer: OpenGL's name for the device, such as "llvmpipe (LLVM 15.0.6, 256 bits)" or a GPU's name.
    """

    asked: str
    used: str
    renderer: str


def activate(asked: str) -> Backend:
    """Find a backend that draws, and set MUJOCO_GL and PYOPENGL_PLATFORM for this process and its children.

    Raises:
        SimulatorError: none works, or MuJoCo was imported before with another one.
    """
    backend = _remembered(asked) or _probe_all(asked)
    loaded = _loaded_backend()
    if loaded not in (None, backend.used):
        raise SimulatorError(
            f"mujoco was imported with the OpenGL backend {loaded!r} before sim.gl={asked} chose {backend.used!r}, and "
            f"it cannot change. Set MUJOCO_GL={backend.used}, or import mujoco after creating a Simulator."
        )
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = backend.used
    os.environ[PROBE_MEMORY] = json.dumps({**asdict(backend), "device": _device()})
    return backend


def probe(name: str, timeout_s: float = PROBE_TIMEOUT_S) -> str:
    """Draw a picture with backend `name` in a process of its own; return OpenGL's renderer string.

    Raises:
        SimulatorError: it crashed, hung, or drew something else.
    """
    program = [sys.executable, "-P", str(Path(__file__).with_name("gl_probe.py"))]
    env = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
    try:
        result = subprocess.run(program, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise SimulatorError(f"{name}: no picture within {timeout_s:g} s") from None
    try:
        return str(json.loads(result.stdout)["renderer"])
    except (ValueError, KeyError):
        last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        raise SimulatorError(f"{name}: {last}") from None


def _probe_all(asked: str) -> Backend:
    names = list(CANDIDATES[asked])
    # auto takes what a process that already holds MuJoCo can still use, before its own order.
    names.sort(key=lambda name: name != _loaded_backend())
    failures = []
    for name in names:
        try:
            backend = Backend(asked, name, probe(name))
        except SimulatorError as e:
            failures.append(str(e))
            log.warning("OpenGL backend %s", e)
        else:
            log.info("OpenGL: %s, %s", backend.used, backend.renderer)
            return backend
    raise SimulatorError(
        f"no OpenGL backend draws (sim.gl={asked}): {'; '.join(failures)}. On Debian or Ubuntu: "
        f"apt-get install -y {' '.join(DEBIAN_PACKAGES)}"
    )


def _remembered(asked: str) -> Backend | None:
    try:
        memory = json.loads(os.environ[PROBE_MEMORY])
        if memory.pop("device") == _device() and memory["asked"] == asked:
            return Backend(**memory)
    except (KeyError, ValueError, TypeError, AttributeError):
        pass
    return None


def _device() -> str | None:
    """The GPU that EGL is told to use: another one is another probe."""
    return os.environ.get("MUJOCO_EGL_DEVICE_ID")


def _loaded_backend() -> str | None:
    """The backend that MuJoCo was imported with, or None while it isn't imported."""
    module = sys.modules.get("mujoco.gl_context")
    context = getattr(module, "GLContext", None)
    return context.__module__.rpartition(".")[2] if context else None
