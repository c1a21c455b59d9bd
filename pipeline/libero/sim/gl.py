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
CUDA_TIMEOUT_S = 120.0  # for importing torch, too
EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"  # MuJoCo's own variable
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


def activate(asked: str, gpu: int | None = None, cuda: str | None = None) -> Backend:
    """Find a backend that draws, and set MUJOCO_GL and PYOPENGL_PLATFORM for this process and its children.

    Args:
        asked: "auto", "egl" or "osmesa".
        gpu: CUDA's number of the GPU to draw on with EGL, unless MUJOCO_EGL_DEVICE_ID is set; None: EGL's own choice.
        cuda: torch device that this process computes on: EGL must work beside it, which on some machines it does not.

    Raises:
        SimulatorError: none works, or PyOpenGL was imported before for another one.
    """
    egl_device = None if gpu is None or EGL_DEVICE in os.environ else _egl_number(gpu)
    backend = _remembered(asked, egl_device, cuda)
    if backend is None:
        backend = _probe_all(asked, egl_device, cuda)
        os.environ[PROBE_MEMORY] = json.dumps({**asdict(backend), "device": _device(), "cuda": cuda})
    loaded = _loaded_backend()
    if loaded not in (None, backend.used):
        raise SimulatorError(
            f"PyOpenGL was imported for {loaded!r} before sim.gl={asked} chose {backend.used!r}, and it cannot change. "
            f"Start the process with MUJOCO_GL={backend.used} PYOPENGL_PLATFORM={backend.used}."
        )
    load_triton_first()
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = backend.used
    return backend


def probe(name: str, timeout_s: float = PROBE_TIMEOUT_S, cuda: str | None = None) -> str:
    """Draw a picture with backend `name` in a process of its own; return OpenGL's renderer string.

    Args:
        cuda: torch device on which that process has a CUDA context while it draws.

    Raises:
        SimulatorError: it crashed, hung, or drew something else.
    """
    program = [sys.executable, "-P", str(Path(__file__).with_name("gl_probe.py")), *([cuda] if cuda else [])]
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


def _egl_number(gpu: int) -> str:
    """Return EGL's number of one of CUDA's GPUs: CUDA counts those of CUDA_VISIBLE_DEVICES only."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[gpu].strip() if gpu < len(visible) and visible[gpu].strip().isdigit() else str(gpu)


def _probe_egl(device: str | None, cuda: str | None) -> str:
    """Probe EGL on device number `device`; if that does not draw, on the one that EGL takes."""
    if device is not None:
        os.environ[EGL_DEVICE] = device
        try:
            return probe("egl", CUDA_TIMEOUT_S, cuda)
        except SimulatorError as e:
            log.warning("OpenGL backend %s, on its device %s", e, device)
            del os.environ[EGL_DEVICE]
    return probe("egl", CUDA_TIMEOUT_S, cuda) if cuda else probe("egl")


def _probe_all(asked: str, egl_device: str | None, cuda: str | None) -> Backend:
    names = list(CANDIDATES[asked])
    # auto takes what a process that already holds MuJoCo can still use, before its own order.
    names.sort(key=lambda name: name != _loaded_backend())
    failures = []
    for name in names:
        try:
            backend = Backend(asked, name, _probe_egl(egl_device, cuda) if name == "egl" else probe(name))
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


def _remembered(asked: str, egl_device: str | None, cuda: str | None) -> Backend | None:
    """Return what was found before for the same question, in this process or one that started it."""
    try:
        memory = json.loads(os.environ[PROBE_MEMORY])
        beside, device = memory.pop("cuda"), memory.pop("device")
        if cuda in (None, beside) and device == (egl_device or _device()) and memory["asked"] == asked:
            return Backend(**memory)
    except (KeyError, ValueError, TypeError, AttributeError):
        pass
    return None


def _device() -> str | None:
    """The GPU that EGL is told to use: another one is another probe."""
    return os.environ.get(EGL_DEVICE)


def _loaded_backend() -> str | None:
    """The platform that PyOpenGL was imported for, or None while it isn't imported.

    MuJoCo itself may have been imported with another MUJOCO_GL: that fixes mujoco.GLContext only, which is not used.
    """
    return next((name for name in ("egl", "osmesa", "glx") if f"OpenGL.platform.{name}" in sys.modules), None)
