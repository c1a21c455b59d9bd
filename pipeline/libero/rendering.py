"""Draw cameras of a MuJoCo model off screen, only when asked, exactly as robosuite would.

robosuite's own context draws every camera at every control step and calls `forward()` when it is made, which would
touch the simulation. This one reads the data as they are.
"""

from typing import Any

import numpy as np
from jaxtyping import UInt8

MAX_GEOMS = 1000  # as robosuite's MjRenderContext


class Renderer:
    """An OpenGL context for one model at a time. To be used in the thread that made it.

    Args:
        size: pixels of the square images.
        quality: "full" draws as LIBERO does. "fast" leaves out the reflection pass and multisampling.
    """

    def __init__(self, size: int, quality: str) -> None:
        import mujoco

        self._size = size
        self._quality = quality
        self._gl = mujoco.GLContext(640, 480)
        self._model: Any = None
        self._scene: Any = None
        self._context: Any = None
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision geoms, hidden in LIBERO's environments
        self._option.geomgroup[1] = 1
        self._perturb = mujoco.MjvPerturb()

    def draw(self, model: Any, data: Any, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """Return what `camera` sees, bottom row first, as OpenGL and LIBERO give it."""
        import mujoco

        self._gl.make_current()
        if model is not self._model:
            self._load(model)
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(
            model, data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, self._size, self._size)
        mujoco.mjr_render(viewport, self._scene, self._context)
        image = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return image

    def close(self) -> None:
        """Free what lies in OpenGL, now rather than while the interpreter ends, when it fails noisily."""
        if self._gl is None:
            return
        self._gl.make_current()
        if self._context is not None:
            self._context.free()
        self._gl.free()
        self._gl = self._context = self._scene = self._model = None

    def _load(self, model: Any) -> None:
        """Upload the model's meshes and textures."""
        import mujoco

        if self._context is not None:
            self._context.free()
        if self._quality == "fast":
            model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self._size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self._size)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        if self._quality == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._model = model
