"""The OpenGL probe, with backends that really fail. Each choice is made in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.errors import SimulatorError
from pipeline.libero.sim import gl

NO_SUCH_GPU = {"MUJOCO_EGL_DEVICE_ID": "99"}  # makes EGL fail, for real

ACTIVATE = """
import json, os, sys
{before}
from dataclasses import asdict
from pipeline.errors import SimulatorError
from pipeline.libero.sim import gl
try:
    backend = gl.activate({asked!r})
    context = gl.context(backend.used)
    context.make_current()
    from OpenGL import GL
    print(json.dumps(asdict(backend) | dict(drew=GL.glGetString(GL.GL_RENDERER).decode(), env=os.environ["MUJOCO_GL"])))
    context.free()
except SimulatorError as e:
    print(json.dumps(dict(error=str(e))))
"""


def activate(asked: str, before: str = "", **env: str) -> dict:
    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", gl.PROBE_MEMORY)}
    program = ACTIVATE.format(asked=asked, before=before)
    result = subprocess.run(
        [sys.executable, "-c", program], env=clean | env, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_osmesa_draws_and_is_recorded() -> None:
    backend = activate("osmesa")
    assert (backend["asked"], backend["used"], backend["env"]) == ("osmesa", "osmesa", "osmesa")
    assert backend["renderer"] == backend["drew"]


def test_auto_takes_osmesa_where_egl_fails() -> None:
    assert activate("auto", **NO_SUCH_GPU)["used"] == "osmesa"


def test_no_backend_names_the_failure_and_the_packages() -> None:
    error = activate("egl", **NO_SUCH_GPU)["error"]
    assert "sim.gl=egl" in error
    assert "MUJOCO_EGL_DEVICE_ID" in error
    assert "apt-get install -y libosmesa6 libegl1 libgl1 libegl-mesa0 libglx-mesa0" in error


def test_mujoco_may_have_been_imported_before() -> None:
    backend = activate("osmesa", before="import mujoco", MUJOCO_GL="glfw")
    assert backend["drew"] == backend["renderer"]


def test_pyopengl_imported_for_another_platform_is_an_error() -> None:
    error = activate("osmesa", before="import OpenGL.GL", PYOPENGL_PLATFORM="egl")["error"]
    assert "MUJOCO_GL=osmesa PYOPENGL_PLATFORM=osmesa" in error


@pytest.mark.parametrize(
    ("asked", "memory", "renderer"),
    [
        ("auto", {}, "known already"),
        ("osmesa", {}, "probed"),  # another question
        ("auto", {"device": "3"}, "probed"),  # another GPU
        ("auto", {"used": None, "extra": 1}, "probed"),
    ],
)
def test_a_child_probes_only_what_its_parent_did_not(
    asked: str, memory: dict, renderer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"asked": "auto", "used": "osmesa", "renderer": "known already", "device": None, "cuda": None}
    monkeypatch.setenv(gl.PROBE_MEMORY, json.dumps(known | memory))
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, "")  # to be put back after the test
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setattr(gl, "_loaded_backend", lambda: None)
    monkeypatch.setattr(gl, "probe", lambda name, *_: "probed")
    assert gl.activate(asked).renderer == renderer
    assert json.loads(os.environ[gl.PROBE_MEMORY])["renderer"] == renderer


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What is probed, all of which draws: backend, EGL's device, CUDA's device. Nothing was probed before."""
    done: list[tuple] = []

    def probe(name: str, timeout_s: float = 0, cuda: str | None = None) -> str:
        done.append((name, os.environ.get(gl.EGL_DEVICE), cuda))
        return "a renderer"

    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", gl.PROBE_MEMORY, gl.EGL_DEVICE, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # to be put back after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(gl, "_loaded_backend", lambda: None)
    monkeypatch.setattr(gl, "probe", probe)
    return done


def test_egl_is_probed_beside_cuda_on_the_gpu_that_it_draws_on(
    probes: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    gl.activate("auto", gpu=1, cuda="cuda:1")
    assert probes == [("egl", "1", "cuda:1")] and os.environ[gl.EGL_DEVICE] == "1"
    gl.activate("auto")
    gl.activate("auto", gpu=1, cuda="cuda:1")
    assert len(probes) == 1, "the simulator asks again, and need not know of CUDA"
    monkeypatch.delenv(gl.EGL_DEVICE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    gl.activate("auto", gpu=1, cuda="cuda:1")
    assert probes[1:] == [("egl", "6", "cuda:1")]


def test_a_device_that_the_user_has_set_stays(probes: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gl.EGL_DEVICE, "3")
    gl.activate("auto", gpu=1)
    assert probes == [("egl", "3", None)]
    gl.activate("auto", cuda="cuda:0")
    assert probes[1:] == [("egl", "3", "cuda:0")], "what draws alone may not draw beside CUDA"


def test_where_egl_aborts_beside_cuda_osmesa_draws(probes: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    def aborts(name: str, *_: object) -> str:
        probes.append((name, os.environ.get(gl.EGL_DEVICE)))
        if name == "egl":
            raise SimulatorError("egl: the probe died with status -6: no message")
        return "llvmpipe"

    monkeypatch.setattr(gl, "probe", aborts)
    assert gl.activate("auto", gpu=1, cuda="cuda:1").used == "osmesa"
    assert probes == [("egl", "1"), ("egl", None), ("osmesa", None)]
    assert gl.EGL_DEVICE not in os.environ


def test_a_probe_beside_a_cuda_that_is_not_there_fails() -> None:
    with pytest.raises(SimulatorError, match=r"egl: (RuntimeError|AssertionError|AcceleratorError)"):
        gl.probe("egl", gl.CUDA_TIMEOUT_S, "cuda:77")


def test_a_probe_that_hangs_is_given_up() -> None:
    with pytest.raises(SimulatorError, match=r"osmesa: no picture within 0\.01 s"):
        gl.probe("osmesa", timeout_s=0.01)


def test_a_probe_that_dies_gives_its_last_words() -> None:
    with pytest.raises(SimulatorError, match=r"nonsense: .*nonsense"):
        gl.probe("nonsense")


AFTERWARDS = """
import sys
from pipeline.libero.sim import gl
backend = gl.activate(sys.argv[1])
import mujoco, robosuite
context = gl.context(backend.used)
context.make_current()
import open_clip, triton
print("both")
"""


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_what_brings_an_llvm_of_its_own_can_be_imported_after_drawing(backend: str) -> None:
    """In a process of its own: the order of imports is what matters."""
    program = [sys.executable, "-W", "ignore", "-c", AFTERWARDS, backend]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.stdout == "both\n", done.stderr
