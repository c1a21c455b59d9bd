"""Ways to give robosuite's results with less work: the same bits, tested against LIBERO's own environment.

robosuite compiles the scene anew for every reset (0.5 s) although its XML stays the same, and looks for collisions
three times in every substep of 2 ms although the state changes once.
"""

import ctypes
import gc
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.libero.sim.textures import shrink

CONTENT_TYPE = re.compile(r' content_type="[^"]*"')
"""Of a mesh's file: MuJoCo tells it or not, by what this process has read before. A demonstration's bytes must not."""

_lock = threading.Lock()  # MuJoCo remembers one scene per process: the last that was parsed


class SceneCache:
    """Compile an environment's scene once and put it back to its first state at each reset.

    Poses of fixtures and colours of sites are set in the model by resets and by tasks (a stove's flame), so everything
    numeric in it is restored; meshes and textures, over 95 % of it, never change.

    Args:
        prepare: called with each newly compiled mujoco.MjModel, to change what is drawn.
        largest_texture: pixels; larger ones are compiled as smaller copies.
    """

    def __init__(self, prepare: Callable[[Any], None], largest_texture: int) -> None:
        self._prepare = prepare
        self._largest_texture = largest_texture
        self._env: Any = None
        self._xml = ""
        self._small_xml = self._saved_xml = ""
        self._originals: dict[str, str] = {}
        self._model: Any = None
        self._first_state: dict[str, np.ndarray] = {}

    @contextmanager
    def serving_new_environments(self) -> Iterator[None]:
        """Within it, a robosuite environment that is built compiles its scene here, then and at each reset.

        Two of its methods are replaced, on the object.
        """
        from robosuite.environments.base import MujocoEnv

        original = MujocoEnv._initialize_sim

        def attach(env: Any, xml_string: str | None = None) -> None:
            self._env = env
            env._initialize_sim = self._initialize_sim
            env._destroy_sim = self._destroy_sim
            self._initialize_sim(xml_string)

        MujocoEnv._initialize_sim = attach
        try:
            yield
        finally:
            MujocoEnv._initialize_sim = original

    def close(self) -> None:
        """Let go of environment and model, and hand their memory back to the system."""
        self._env = self._model = None
        self._first_state = {}
        gc.collect()  # LIBERO's environments are full of references in circles
        return_freed_memory()

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        """Do what MujocoEnv._initialize_sim does, without compiling what was compiled before."""
        from robosuite.utils.binding_utils import MjSim

        xml = xml_string or self._env.model.get_xml()
        if xml == self._xml:
            for name, values in self._first_state.items():
                getattr(self._model, name)[:] = values
        else:
            self._compile(xml)
        self._env.sim = MjSim(self._model)
        self._env.sim.forward()
        self._env.initialize_time(self._env.control_freq)

    def _destroy_sim(self) -> None:
        """Let go of the simulation without robosuite's gc.collect(), 0.2 s among this many modules."""
        self._env.sim = None

    def _compile(self, xml: str) -> None:
        self._small_xml, self._originals = shrink(xml, self._largest_texture)
        with _lock:
            self._model = _parse(self._small_xml)
            self._saved_xml = self._write_last_parsed()
        self._xml = xml
        self._prepare(self._model)
        self._first_state = {name: values.copy() for name, values in changeable_arrays(self._model).items()}

    def saved_xml(self) -> str:
        """Return the scene's XML with the present poses and colours, as MuJoCo writes it."""
        xml = self._with_present_values()
        if xml is None:
            with _lock:
                _parse(self._small_xml)
                xml = self._write_last_parsed()
        return xml

    def _with_present_values(self) -> str | None:
        """Put them into the text of the compiled scene; None where something else has changed.

        Parsing it again takes more than a second, and MuJoCo would hold every mesh a second time, 300 MB.
        """
        changed = {
            name: np.flatnonzero((values != self._first_state[name]).reshape(len(values), -1).any(1))
            for name, values in changeable_arrays(self._model).items()
            if not np.array_equal(values, self._first_state[name], equal_nan=True)
        }
        if not changed.keys() <= {"body_pos", "body_quat", "site_rgba"}:
            return None
        model, xml = self._model, self._saved_xml
        for i in sorted({*changed.get("body_pos", ()), *changed.get("body_quat", ())}):
            xml = _with_pose(xml, model.body(i).name, model.body_pos[i], model.body_quat[i])
        for i in changed.get("site_rgba", ()):  # robosuite hides sites by a negative opacity
            before, name = xml, re.escape(model.site(i).name)
            xml = re.sub(rf'(<site name="{name}"[^>]* rgba=)"[^"]*"', rf'\1"{_numbers(model.site_rgba[i])}"', xml)
            if xml == before:
                return None
        return xml

    def _write_last_parsed(self) -> str:
        """Return the XML of what MuJoCo parsed last with the model's values, and have MuJoCo forget it."""
        import mujoco

        with TemporaryDirectory() as directory:
            path = Path(directory) / "model.xml"
            mujoco.mj_saveLastXML(str(path), self._model)
            xml = path.read_text()
        _parse("<mujoco/>")  # not mj_freeLastXML, after which whoever saves the last scene crashes
        return_freed_memory()
        for small, original in self._originals.items():
            xml = xml.replace(f'"{small}"', f'"{original}"')
        return CONTENT_TYPE.sub("", xml)


def _numbers(values: np.ndarray) -> str:
    """Return numbers as MuJoCo writes them: six digits, and none where it is whole but for rounding."""
    return " ".join(f"{round(x) if abs(x - round(x)) < 1e-12 else x:g}" for x in values.tolist())


def _with_pose(xml: str, body: str, pos: np.ndarray, quat: np.ndarray) -> str:
    """Return MuJoCo's XML with one body elsewhere. Numbers that are the default are left out, as MuJoCo does."""

    def tag(match: re.Match[str]) -> str:
        named = dict(re.findall(r'(\w+)="([^"]*)"', match[0]))
        others = {key: value for key, value in named.items() if key not in ("name", "pos", "quat")}
        pose = {
            key: _numbers(values)
            for key, values, default in (("pos", pos, (0, 0, 0)), ("quat", quat, (1, 0, 0, 0)))
            if tuple(values) != default
        }
        return "<body " + " ".join(f'{k}="{v}"' for k, v in ({"name": body} | pose | others).items()) + match[1]

    return re.sub(rf'<body name="{re.escape(body)}"[^>]*?(/?>)', tag, xml)


def _parse(xml: str) -> Any:
    """Return a new mujoco.MjModel."""
    import mujoco

    return mujoco.MjModel.from_xml_string(xml)


@cache
def cache_no_files() -> None:
    """Have MuJoCo keep nothing of the files that it reads: up to 500 MB in this process.

    Before it has read any: its cache does not shrink well.
    """
    import mujoco

    library = ctypes.CDLL(str(next(Path(mujoco.__file__).parent.glob("libmujoco*"))))  # not in the Python package
    library.mj_globalCache.restype = ctypes.c_void_p
    library.mj_setCacheSize(ctypes.c_void_p(library.mj_globalCache()), ctypes.c_size_t(0))


def return_freed_memory() -> None:
    """Hand back to the system what was freed, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def changeable_arrays(model: Any) -> dict[str, np.ndarray]:
    """Return a mujoco.MjModel's arrays, but not those of meshes, textures and height fields, nor names and paths."""
    arrays = {
        name: getattr(model, name) for name in dir(model) if not name.startswith(("_", "mesh_", "tex_", "hfield_"))
    }
    return {name: a for name, a in arrays.items() if isinstance(a, np.ndarray) and a.flags.writeable}


@contextmanager
def one_collision_check_per_substep(sim: Any) -> Iterator[None]:
    """Within it, `sim.forward()` and `sim.step()` compute what depends on positions and velocities once per state.

    robosuite's substep is forward (environment), forward (controller), set torques, step, each with kinematics,
    collisions, bias forces and a constraint solve. Only the solve has to be repeated: each starts from the result of
    the last, so the number of them shows in the 5th decimal of the state. By MuJoCo's definition mj_step is mj_step1
    (positions, velocities) and mj_step2 (the rest), with controls set in between, for the Euler integrator.
    """
    import mujoco

    model, data = sim.model._model, sim.data._data
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    known = False

    def forward() -> None:
        nonlocal known
        if known:
            mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, True)
        else:
            mujoco.mj_forward(model, data)
            known = True

    def step(with_udd: bool = True) -> None:
        nonlocal known
        assert known
        mujoco.mj_step2(model, data)
        known = False

    sim.forward, sim.step = forward, step
    try:
        yield
    finally:
        del sim.forward, sim.step
