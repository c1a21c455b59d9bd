"""Ways to give robosuite's results with less work: the same bits, tested against LIBERO's own environment.

robosuite compiles the scene anew for every reset (0.5 s) although its XML stays the same, and looks for collisions
three times in every substep of 2 ms although the state changes once.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

_last_compiled: "SceneCache | None" = None
"""Whose XML MuJoCo, which remembers one per process, parsed last."""
_lock = threading.Lock()


class SceneCache:
    """Compile an environment's scene once and put it back to its first state at each reset.

    It replaces two methods of `env`, on the object. Poses of fixtures and colours of sites are set in the model by
    resets and by tasks (a stove's flame), so everything numeric in it is restored; meshes and textures, over 95 % of
    it, never change.

    Args:
        env: a robosuite environment with hard resets.
        prepare: called with each newly compiled mujoco.MjModel, to change what is drawn.
    """

    def __init__(self, env: Any, prepare: Any) -> None:
        self._env = env
        self._prepare = prepare
        self._xml = ""
        self._model: Any = None
        self._first_state: dict[str, np.ndarray] = {}
        env._initialize_sim = self._initialize_sim
        env._destroy_sim = self._destroy_sim

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
        import mujoco

        global _last_compiled
        with _lock:
            self._model = mujoco.MjModel.from_xml_string(xml)
            _last_compiled = self
        self._xml = xml
        self._prepare(self._model)
        self._first_state = {name: values.copy() for name, values in changeable_arrays(self._model).items()}

    def saved_xml(self) -> str:
        """Return the scene's XML with the present poses and colours, as MuJoCo writes it."""
        import mujoco

        global _last_compiled
        with _lock, TemporaryDirectory() as directory:
            if _last_compiled is not self:
                mujoco.MjModel.from_xml_string(self._xml)
                _last_compiled = self
            path = Path(directory) / "model.xml"
            mujoco.mj_saveLastXML(str(path), self._model)
            return path.read_text()


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
