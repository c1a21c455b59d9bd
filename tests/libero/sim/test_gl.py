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
    known = {"asked": "auto", "used": "osmesa", "renderer": "known already", "device": None}
    monkeypatch.setenv(gl.PROBE_MEMORY, json.dumps(known | memory))
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, "")  # to be put back after the test
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setattr(gl, "_loaded_backend", lambda: None)
    monkeypatch.setattr(gl, "probe", lambda name: "probed")
    assert gl.activate(asked).renderer == renderer
    assert json.loads(os.environ[gl.PROBE_MEMORY])["renderer"] == renderer


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
