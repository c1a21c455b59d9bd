"""Ways to give robosuite's results with less work: the same bits, tested against LIBERO's own environment.

robosuite compiles the scene anew for every reset (0.5 s) although its XML stays the same, and looks for collisions
three times in every substep of 2 ms although the state changes once.
"""

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.libero.textures import shrink

_last_parsed: "SceneCache | None" = None
"""Whose XML MuJoCo, which remembers one per process, parsed last."""
_lock = threading.Lock()


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
        self._small_xml = ""
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
        global _last_parsed
        self._env = self._model = None
        self._first_state = {}
        gc.collect()  # LIBERO's environments are full of references in circles
        with _lock:
            forget_parsed()
            _last_parsed = None

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
        global _last_parsed
        self._small_xml, self._originals = shrink(xml, self._largest_texture)
        with _lock:
            self._model = _parse(self._small_xml)
            # MuJoCo remembers what it parsed, with every mesh: some 300 MB, of use to nobody but `saved_xml`.
            forget_parsed()
            _last_parsed = None
        self._xml = xml
        self._prepare(self._model)
        self._first_state = {name: values.copy() for name, values in changeable_arrays(self._model).items()}

    def saved_xml(self) -> str:
        """Return the scene's XML with the present poses and colours, as MuJoCo writes it."""
        import mujoco

        global _last_parsed
        with _lock, TemporaryDirectory() as directory:
            if _last_parsed is not self:
                _parse(self._small_xml)
                _last_parsed = self
            path = Path(directory) / "model.xml"
            mujoco.mj_saveLastXML(str(path), self._model)
            xml = path.read_text()
        for small, original in self._originals.items():
            xml = xml.replace(f'"{small}"', f'"{original}"')
        return xml


def _parse(xml: str) -> Any:
    """Return a new mujoco.MjModel, keeping nothing of its files: MuJoCo's own cache of them takes up to 500 MB."""
    import mujoco

    library = mujoco_library()
    library.mj_globalCache.restype = ctypes.c_void_p
    library.mj_setCacheSize(ctypes.c_void_p(library.mj_globalCache()), ctypes.c_size_t(0))
    return mujoco.MjModel.from_xml_string(xml)


def forget_parsed() -> None:
    """Free MuJoCo's memory of the last scene that it parsed, and hand it back to the system."""
    mujoco_library().mj_freeLastXML()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


@cache
def mujoco_library() -> ctypes.CDLL:
    """Return MuJoCo's C library, for the functions that its Python package has not."""
    import mujoco

    return ctypes.CDLL(str(next(Path(mujoco.__file__).parent.glob("libmujoco*"))))


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
