"""Draw cameras of a MuJoCo model off screen, only when asked, with the pixels that LIBERO's environment gives.

robosuite draws every camera at every control step. It samples its sensors, cameras among them, one or two substeps
(2-4 ms) before the control step ends, so drawing the final state gives other pixels. Here a sensor of its own, sampled
with the others, notes the poses of everything that can be drawn; the drawing is done from them when somebody looks.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from pipeline.libero.sim import gl

MAX_GEOMS = 1000  # as robosuite's MjRenderContext
HIDDEN_GROUP = 5  # of geoms: MuJoCo's default is not to draw it

POSES = (
    *("xpos", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
"""Fields of MjData from which MuJoCo draws a scene without tendons, skins and flexible bodies."""


class Sampler:
    """The poses of everything drawable, as of the last time that `env` sampled its sensors."""

    def __init__(self, env: Any) -> None:
        from robosuite.utils.observables import Observable, sensor

        @sensor(modality="poses")
        def poses(obs_cache: dict) -> float:
            self._values = [getattr(env.sim.data, name).copy() for name in POSES]
            return 0.0

        # active=False: sampled, but not handed out among the environment's observations.
        env.add_observable(Observable("poses", poses, sampling_rate=env.control_freq, active=False))

    def write_into(self, data: Any) -> None:
        """Set these poses in another mujoco.MjData of the same model."""
        for name, values in zip(POSES, self._values, strict=True):
            getattr(data, name)[:] = values


class Renderer:
    """An OpenGL context for one model at a time. To be used in the thread that made it.

    Args:
        size: pixels of the square images.
        quality: "full" draws as LIBERO does. "fast" leaves out the reflection pass, and what the camera does not see.
        backend: what `gl.activate` found.
    """

    def __init__(self, size: int, quality: str, backend: str) -> None:
        import mujoco

        self._size = size
        self._quality = quality
        self._backend = backend
        self._gl = gl.context(backend)
        self._model: Any = None
        self._data: Any = None
        self._scene: Any = None
        self._context: Any = None
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision geoms, hidden in LIBERO's environments
        self._option.geomgroup[1] = 1
        self._perturb = mujoco.MjvPerturb()

    def draw(
        self, model: Any, poses: Sampler, camera: str, depth: bool = False
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Float32[np.ndarray, "H W"] | None]:
        """Return what `camera` saw when `poses` were sampled, bottom row first, as OpenGL and LIBERO give it.

        Returns:
            The picture and, if asked for, metres from the camera's plane.
        """
        with self._current():
            return self._draw(model, poses, camera, depth)

    def label(self, model: Any, poses: Sampler, camera: str) -> Int32[np.ndarray, "H W"]:
        """Return the number of the geom that `camera` saw in each pixel, -1 for none, bottom row first."""
        import mujoco

        with self._current():
            self._ready(model)
            flags, kinds = self._scene.flags, mujoco.mjtRndFlag
            before = flags.copy()
            flags[[int(kinds.mjRND_SHADOW), int(kinds.mjRND_REFLECTION)]] = 0  # they mix colours
            flags[[int(kinds.mjRND_SEGMENT), int(kinds.mjRND_IDCOLOR)]] = 1
            try:
                red, green, blue = self._draw(model, poses, camera, False)[0].astype(np.int32).transpose(2, 0, 1)
            finally:
                flags[:] = before
            geoms = np.full(self._scene.maxgeom + 1, -1, np.int32)  # by colour: 0 is the background
            for geom in self._scene.geoms[: self._scene.ngeom]:
                if _is_geom(geom):
                    geoms[geom.segid + 1] = geom.objid
        return geoms[red + (green << 8) + (blue << 16)]

    @contextmanager
    def textured(self, model: Any, textures: Mapping[int, int]) -> Iterator[None]:
        """Draw materials with other textures of the model, for this long."""
        import mujoco

        with self._current():
            self._ready(model)
        drawn = np.reshape(self._context.mat_texid, (-1, mujoco.mjtTextureRole.mjNTEXROLE))
        before = drawn.copy()
        for material, texture in textures.items():
            drawn[material, mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture
        try:
            yield
        finally:
            drawn[:] = before

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make this context current, for this long only.

        robosuite's contexts, when they are collected as garbage, free their objects by number in whatever context is
        current: in this one they would be ours, and its next images wrong.
        """
        collecting = gc.isenabled()
        gc.disable()
        self._gl.make_current()
        try:
            yield
        finally:
            gl.release(self._backend)
            if collecting:
                gc.enable()

    def _draw(self, model: Any, poses: Sampler, camera: str, depth: bool) -> tuple[np.ndarray, np.ndarray | None]:
        import mujoco

        self._ready(model)
        poses.write_into(self._data)
        self._camera.fixedcamid = model.camera(camera).id
        with self._without_unseen(model):
            mujoco.mjv_updateScene(
                model, self._data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
            )
        viewport = mujoco.MjrRect(0, 0, self._size, self._size)
        mujoco.mjr_render(viewport, self._scene, self._context)
        image = np.empty((self._size, self._size, 3), np.uint8)
        buffer = np.empty((self._size, self._size), np.float32) if depth else None
        mujoco.mjr_readPixels(image, buffer, viewport, self._context)
        return image, None if buffer is None else _metres(model, buffer)

    @contextmanager
    def _without_unseen(self, model: Any) -> Iterator[None]:
        """Hide the geoms that are not in the camera's view, for this long. The picture is the same without them.

        In software most of a picture's time goes into the arm's vertices, and the camera at the wrist has most of the
        arm behind it. What is out of view is seen in reflections and as shadows: with either, all is drawn.
        """
        if self._quality != "fast" or model.light_castshadow.any():
            yield
            return
        groups = model.geom_group.copy()
        model.geom_group[~in_view(model, self._data, self._camera.fixedcamid)] = HIDDEN_GROUP
        try:
            yield
        finally:
            model.geom_group[:] = groups

    def close(self) -> None:
        """Free what lies in OpenGL, now rather than while the interpreter ends, when it fails noisily."""
        if self._gl is None:
            return
        with self._current():
            if self._context is not None:
                self._context.free()
        self._gl.free()
        self._gl = self._context = self._scene = self._data = self._model = None

    def _ready(self, model: Any) -> None:
        if model is not self._model:
            self._load(model)

    def _load(self, model: Any) -> None:
        """Upload the model's meshes and textures."""
        import mujoco

        if self._context is not None:
            self._context.free()
        # A buffer no larger than the pictures: clearing and averaging 640 x 480 pixels of 4 samples takes a few ms.
        window, size = model.vis.global_, (model.vis.global_.offwidth, model.vis.global_.offheight)
        window.offwidth = window.offheight = self._size
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        window.offwidth, window.offheight = size  # as LIBERO's scenes have it, and demonstrations keep it
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        if self._quality == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._data = mujoco.MjData(model)
        self._model = model


def _is_geom(geom: Any) -> bool:
    import mujoco

    return geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM


def in_view(model: Any, data: Any, camera: int) -> Bool[np.ndarray, "G"]:
    """Return which geoms a camera of square pictures may see: their bounding spheres reach into its pyramid of view.

    Args:
        data: mujoco.MjData with the poses of geoms and cameras.
        camera: its number in the model.
    """
    right, up, back = ((data.geom_xpos - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).T
    half = np.radians(model.cam_fovy[camera]) / 2
    # How far the centre lies beyond the nearer side plane, and behind the camera.
    beyond = np.maximum(np.abs(right), np.abs(up)) * np.cos(half) + back * np.sin(half)
    radius = model.geom_rbound
    return (radius == 0) | (np.maximum(beyond, back) <= radius)  # 0: a plane, without end


def _metres(model: Any, buffer: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Return the distances that OpenGL's depth buffer stands for: 0 at the near plane of clipping, 1 at the far one."""
    near, far = (model.stat.extent * plane for plane in (model.vis.map.znear, model.vis.map.zfar))
    return (near / (1 - buffer * (1 - near / far))).astype(np.float32)
