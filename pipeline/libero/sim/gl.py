"""Choose the OpenGL backend that MuJoCo draws with, by trying it.

PyOpenGL and robosuite read the choice from the environment once, when they are imported; so `activate` comes first.
"""

import ctypes
import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import SimulatorError

log = logging.getLogger(__name__)

CANDIDATES = {"auto": ("egl", "osmesa"), "egl": ("egl",), "osmesa": ("osmesa",)}
DEBIAN_PACKAGES = ("libosmesa6", "libegl1", "libgl1", "libegl-mesa0", "libglx-mesa0", "libgl1-mesa-dri")
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
        SimulatorError: none works, or PyOpenGL was imported before for another one.
    """
    backend = _remembered(asked) or _probe_all(asked)
    loaded = _loaded_backend()
    if loaded not in (None, backend.used):
        raise SimulatorError(
            f"PyOpenGL was imported for {loaded!r} before sim.gl={asked} chose {backend.used!r}, and it cannot change. "
            f"Start the process with MUJOCO_GL={backend.used} PYOPENGL_PLATFORM={backend.used}."
        )
    load_triton_first()
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
        answer = json.loads(result.stdout)
    except ValueError:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise SimulatorError(f"{name}: the probe died with status {result.returncode}: {last}") from None
    if "error" in answer:
        raise SimulatorError(f"{name}: {answer['error']}")
    return str(answer["renderer"])


def context(backend: str) -> Any:
    """Return a new off-screen OpenGL context of an activated backend, with make_current() and free()."""
    logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)  # "no OpenGL_accelerate", at level INFO
    return importlib.import_module(f"mujoco.{backend}").GLContext(640, 480)


@cache
def load_triton_first() -> None:
    """Load Triton's library, if it is installed, before Mesa's.

    Each brings an LLVM. Where Mesa's comes first, importing Triton, as open_clip and torch.compile do, is a
    segmentation fault; where Mesa's is there already, it is too late.
    """
    loaded = Path("/proc/self/maps")
    if not loaded.is_file() or "libLLVM" in loaded.read_text():
        return
    triton = importlib.util.find_spec("triton")
    library = triton and triton.origin and Path(triton.origin).parent / "_C" / "libtriton.so"
    if library and library.is_file():
        ctypes.CDLL(str(library))


def release(backend: str) -> None:
    """Leave no context current in this thread."""
    if backend == "egl":
        egl = importlib.import_module("mujoco.egl")
        none = egl.EGL.EGL_NO_SURFACE
        egl.EGL.eglMakeCurrent(egl.EGL_DISPLAY, none, none, egl.EGL.EGL_NO_CONTEXT)
    else:
        osmesa = importlib.import_module("mujoco.osmesa")
        osmesa.osmesa.OSMesaMakeCurrent(None, None, osmesa.GL.GL_FLOAT, 0, 0)


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
    """The platform that PyOpenGL was imported for, or None while it isn't imported.

    MuJoCo itself may have been imported with another MUJOCO_GL: that fixes mujoco.GLContext only, which is not used.
    """
    return next((name for name in ("egl", "osmesa", "glx") if f"OpenGL.platform.{name}" in sys.modules), None)
