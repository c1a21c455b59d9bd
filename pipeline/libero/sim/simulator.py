"""One LIBERO task in the simulator, by the protocol that published numbers use, drawing only when somebody looks."""

import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from xml.etree import ElementTree
from xml.etree.ElementTree import ParseError

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8, UInt16

from pipeline.errors import AssetError, ConfigError, DataError, SimulatorError, did_you_mean
from pipeline.libero import depth
from pipeline.libero.conventions import upright
from pipeline.libero.installation import PACKAGE, REMEDY, find_assets
from pipeline.libero.proprio import ee_pose_from_quat
from pipeline.libero.settings import Sim
from pipeline.libero.sim import gl
from pipeline.libero.sim.mesh_decimation import simplify
from pipeline.libero.sim.rendering import Renderer, Sampler
from pipeline.libero.sim.robosuite_import import import_libero
from pipeline.libero.sim.robosuite_patches import SceneCache, one_collision_check_per_substep
from pipeline.libero.sim.textures import TEXELS_PER_PIXEL
from pipeline.libero.suites import Task

ARM_NOISE_STD = 0.02  # rad: of the joints in LIBERO's init states, and robosuite's default; its environments have none
CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}
"""Our names, as in LIBERO's HDF5 files, to the environment's."""
DEPTH_CAMERAS = tuple(f"{camera}{depth.SUFFIX}" for camera in CAMERAS)

NO_OP = np.array([0, 0, 0, 0, 0, 0, -1], np.float64)
"""The action of the settling steps: stay, open the gripper (OpenVLA, openpi)."""

PLACEMENT_TRIES = 100  # LIBERO's own loop has no limit
START_TIMEOUT_S = 300.0
RESET_TIMEOUT_S = 120.0

T = TypeVar("T")


@dataclass(frozen=True)
class Observation:
    """What the policy gets.

    Attributes:
        joint_pos: radians.
        ee_pose: metres and quaternion (xyzw, q_x >= 0).
        gripper: positions of the two fingers, metres.
        ee_wrench: force (N) and torque (N m) that the wrist's sensor measures, in the hand's frame.
        images: per camera, upright; depth as `pipeline.libero.depth.depth_picture` shows it.
        depths: per depth camera what that picture was made of, millimetres.
    """

    joint_pos: Float32[np.ndarray, "7"]
    ee_pose: Float32[np.ndarray, "7"]
    gripper: Float32[np.ndarray, "2"]
    ee_wrench: Float32[np.ndarray, "6"]
    images: dict[str, UInt8[np.ndarray, "H W 3"]] = field(default_factory=dict)
    depths: dict[str, UInt16[np.ndarray, "H W 1"]] = field(default_factory=dict)


class Simulator:
    """A LIBERO environment for one task. Create it in the process that uses it.

    Not for several threads: robosuite draws placements from NumPy's global generator, which `reset` seeds.

    Args:
        task: from `pipeline.libero.suites.tasks`.
        sim: assets, backend, image size, render quality, settling steps.
        cameras: what `observe` draws, of CAMERAS and DEPTH_CAMERAS.

    Raises:
        ConfigError: unknown camera.
        AssetError: the assets are not there.
        SimulatorError: no OpenGL, or the environment can't be built.
    """

    def __init__(self, task: Task, sim: Sim, cameras: tuple[str, ...] = ("agentview", "eye_in_hand")) -> None:
        for camera in cameras:
            if camera not in (known := (*CAMERAS, *DEPTH_CAMERAS)):
                raise ConfigError(f"no camera {camera!r}.{did_you_mean(camera, known)}")
        self.task = task
        self.cameras = cameras
        self._sim = sim
        self._renderer: Renderer | None = None
        self._control: Any = None
        assets = find_assets(sim)
        backend = gl.activate(sim.gl)
        self._scene = SceneCache(self._prepare, TEXELS_PER_PIXEL * sim.image_size)
        self._control = within(START_TIMEOUT_S, f"building {task.name}", lambda: self._build(assets.directory))
        self._initializers = len(self.env.object_property_initializers)
        self._poses = Sampler(self.env)
        _sample_wrench(self.env)
        self.info: dict[str, Any] = {
            "gl_asked": backend.asked,
            "gl_used": backend.used,
            "renderer": backend.renderer,
            "assets_digest": assets.digest,
            "assets_version": assets.version,
            "render": sim.render,
            "image_size": sim.image_size,
            "settle_steps": sim.settle_steps,
            "versions": {name: version(name) for name in ("mujoco", "robosuite", PACKAGE)},
        }

    def reset(self, init_state: Float[np.ndarray, "D"] | None, seed: int) -> None:
        """Start an episode: seed, reset, set the initial state, settle. Draws nothing.

        Seeding comes before every reset, because poses of fixtures are drawn by it and are no part of the state; the
        other way round, or without, results depend on the episodes before.

        Args:
            init_state: row of `suites.init_states`, or of `draw`; None keeps the placement that the environment draws.
            seed: of the environment.

        Raises:
            DataError: a row of another task.
            SimulatorError: no valid placement, or the reset hangs.
        """
        within(RESET_TIMEOUT_S, f"resetting {self.task.name}", lambda: self._reset(init_state, seed))

    def _reset(self, init_state: Float[np.ndarray, "D"] | None, seed: int) -> None:
        self._place(seed)
        if init_state is not None:
            self.set_state(init_state)
        for _ in range(self._sim.settle_steps):
            self.step(NO_OP)

    def _place(self, seed: int) -> None:
        # LIBERO appends to this list at every reset and draws once for each entry, before it places the fixtures: in
        # the task with an open drawer the cabinet would stand elsewhere at each reset, by up to 2 cm, whatever the
        # seed. Cut to its length in a new environment, every reset is like the first.
        del self.env.object_property_initializers[self._initializers :]
        self.env.seed(seed)
        _retry_placement(self.env.reset)

    def draw(self, seed: int) -> Float[np.ndarray, "D"]:
        """Return a new init state: objects as the environment places them, the arm near its usual pose.

        The benchmark's init states are such draws, and evaluation sets them among fixtures that `reset` has placed by
        another seed; so is to be done with these.

        Raises:
            SimulatorError: no valid placement, or the reset hangs.
        """
        within(RESET_TIMEOUT_S, f"resetting {self.task.name}", lambda: self._place(seed))
        state = self.state().copy()
        joints = 1 + np.asarray(self.env.robots[0]._ref_joint_pos_indexes)  # after the time
        state[joints] += ARM_NOISE_STD * np.random.default_rng(seed).normal(size=len(joints))
        return state

    def _build(self, assets: Path) -> Any:
        """Return LIBERO's ControlEnv without any OpenGL context, ending no episode by itself."""
        wrapper = import_libero(assets)
        task = self.task
        try:
            with self._scene.serving_new_environments():
                return _retry_placement(
                    lambda: wrapper.ControlEnv(
                        str(task.bddl_file),
                        use_camera_obs=False,
                        has_offscreen_renderer=False,
                        has_renderer=False,
                        ignore_done=True,
                    )
                )
        except (OSError, ValueError, ParseError) as error:  # Python's own, MuJoCo's, ElementTree's: a file missing
            raise AssetError(
                f"cannot build {task.suite} task {task.id} from {task.bddl_file} with the assets in {assets}: {error}. "
                + (REMEDY if self._sim.assets_path is None else "Set sim.assets_path: null for the installed assets")
            ) from error

    def _prepare(self, model: Any) -> None:
        if self._sim.render == "fast":
            simplify(model)

    def step(self, action: Float[np.ndarray, "7"]) -> bool:
        """Apply one action for one control step of 50 ms; return whether the task is solved. Draws nothing.

        Args:
            action: [dx, dy, dz, dax, day, daz, gripper] in [-1, 1]; 1 is 0.05 m or 0.5 rad, gripper +1 closes.
        """
        with one_collision_check_per_substep(self.env.sim):
            _, _, done, _ = self.env.step(np.asarray(action, np.float64))
        return bool(done)

    def observe(self) -> Observation:
        """Return what LIBERO's environment would, after the last `step`, `set_state` or `reset`, images upright.

        Depth and the wrench, which it does not tell, are of the same moment.

        The cameras are drawn now, from what the environment's sensors sampled then: see `rendering`.
        """
        renderer = self._drawing()
        images, depths = {}, {}
        for camera in dict.fromkeys(depth.rgb_camera(name) for name in self.cameras):
            deep = f"{camera}{depth.SUFFIX}"
            image, metres = renderer.draw(self.model, self._poses, CAMERAS[camera], deep in self.cameras)
            if camera in self.cameras:
                images[camera] = upright(image)
            if metres is not None:
                depths[deep] = upright(depth.to_millimetres(metres))
                images[deep] = depth.depth_picture(depths[deep])
        return self._observation(images, depths)

    def labels(self, camera: str) -> Int32[np.ndarray, "H W"]:
        """Return of each pixel of a camera's upright picture the number of the geom seen there, -1 for none."""
        labels = self._drawing().label(self.model, self._poses, CAMERAS[camera])
        return upright(labels[..., None])[..., 0]

    @contextmanager
    def textured(self, textures: Mapping[int, int]) -> Iterator[None]:
        """Draw materials with other textures of the scene, for this long.

        Args:
            textures: material -> texture, by their numbers in the model.
        """
        with self._drawing().textured(self.model, textures):
            yield

    def _drawing(self) -> Renderer:
        if self._renderer is None:
            self._renderer = Renderer(self._sim.image_size, self._sim.render, self.info["gl_used"])
        return self._renderer

    def proprio(self) -> Observation:
        """Return the proprioception of `observe` alone, with no images."""
        return self._observation({}, {})

    def _observation(self, images: dict[str, np.ndarray], depths: dict[str, np.ndarray]) -> Observation:
        def sensor(name: str) -> np.ndarray:
            return self.env._observables[f"robot0_{name}"].obs

        return Observation(
            images=images,
            depths=depths,
            joint_pos=sensor("joint_pos").astype(np.float32),
            ee_pose=ee_pose_from_quat(sensor("eef_pos"), sensor("eef_quat")),
            gripper=sensor("gripper_qpos").astype(np.float32),
            ee_wrench=sensor("ee_wrench").astype(np.float32),
        )

    def success(self) -> bool:
        """Return whether the task is solved in the present state."""
        return bool(self._control.check_success())

    def state(self) -> Float[np.ndarray, "D"]:
        """Return the flattened MjSimState: time, qpos, qvel."""
        return np.asarray(self._control.get_sim_state(), np.float64)

    def set_state(self, flat: Float[np.ndarray, "D"]) -> None:
        """Set time, qpos and qvel, and what follows from them.

        Raises:
            DataError: `flat` has another length than this task's state.
        """
        size = 1 + self.model.nq + self.model.nv
        if len(flat) != size:
            raise DataError(f"a simulator state of {self.task.name} has {size} numbers, this one {len(flat)}")
        self._control.set_init_state(np.asarray(flat, np.float64))

    def place_fixtures(self, model_xml: str) -> None:
        """Put furniture where a recorded scene has it, until the next reset. Follow it by `set_state`.

        Args:
            model_xml: a demonstration's `model_file`.

        Raises:
            DataError: it is no such scene.
        """
        try:
            bodies = {body.get("name"): body for body in ElementTree.fromstring(model_xml).iter("body")}
            for fixture in self.env.fixtures_dict.values():
                pose = bodies[fixture.root_body]
                body = self.model.body(fixture.root_body)
                body.pos[:] = [float(x) for x in pose.get("pos", "0 0 0").split()]
                body.quat[:] = [float(x) for x in pose.get("quat", "1 0 0 0").split()]
        except (ParseError, KeyError, ValueError) as error:
            raise DataError(f"no scene of {self.task.name} in the demonstration's model_file: {error!r}") from error

    def model_xml(self) -> str:
        """Return the scene's XML, which HDF5 demonstrations keep as `model_file`."""
        return self._scene.saved_xml()

    @property
    def env(self) -> Any:
        """LIBERO's domain environment."""
        return self._control.env

    @property
    def model(self) -> Any:
        """The mujoco.MjModel. A reset restores it."""
        return self.env.sim.model._model

    @property
    def data(self) -> Any:
        """The mujoco.MjData. Another one after each reset."""
        return self.env.sim.data._data

    def close(self) -> None:
        """Free OpenGL and the environment. Harmless when repeated."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._control is not None:
            self._control.close()
            self._control = None
            self._scene.close()

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def within(seconds: float, doing: str, function: Callable[[], T]) -> T:
    """Return `function()`, run in a thread; give up on it after `seconds`.

    Raises:
        SimulatorError: it took longer; the message says where it was. The thread can't be ended: the process should.
    """
    result: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if result:
        return result[0]
    frame = sys._current_frames().get(thread.ident or 0)
    where = "".join(traceback.format_stack(frame)[-3:]) if frame else "?"
    raise SimulatorError(f"{doing} took more than {seconds:g} s; it was at\n{where}")


def _sample_wrench(env: Any) -> None:
    """Have robosuite sample force and torque at the wrist with its other sensors: it measures, but does not tell."""
    from robosuite.utils.observables import Observable, sensor

    @sensor(modality="wrench")
    def ee_wrench(obs_cache: dict) -> np.ndarray:
        robot = env.robots[0]  # another one after a reset
        return np.concatenate([robot.ee_force, robot.ee_torque])

    env.add_observable(Observable("robot0_ee_wrench", ee_wrench, sampling_rate=env.control_freq))


def _retry_placement(function: Callable[[], T]) -> T:
    """Call until the random placement of objects is a valid one, as LIBERO does, but not forever.

    Building an environment and resetting it both draw a placement. ControlEnv.reset is not used: it retries on every
    exception, so that a missing mesh hangs.
    """
    from robosuite.utils.errors import RandomizationError

    for _ in range(PLACEMENT_TRIES):
        try:
            return function()
        except RandomizationError as e:
            last = e
    raise SimulatorError(f"no valid placement of the objects in {PLACEMENT_TRIES} tries: {last}")
