"""Draw one picture with MuJoCo and print which renderer drew it, as JSON. Run by `pipeline.libero.sim.gl` as a program.

A process of its own, since a broken driver may abort or hang, and MuJoCo can't change its backend once imported.
Usage: MUJOCO_GL=egl PYOPENGL_PLATFORM=egl python -P gl_probe.py [cuda:0]
With a CUDA device it holds a context there while it draws, as a process with a policy on that GPU does.
"""

import json
import os
import sys

MODEL = """
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="eye" pos="0 0 3"/>
    <geom type="box" size=".5 .5 .5" rgba="1 0 0 1"/>
  </worldbody>
</mujoco>
"""


def draw() -> str:
    """Draw a red square on black and check it; return OpenGL's name of the renderer."""
    import mujoco
    import numpy as np
    from OpenGL import GL

    with mujoco.Renderer(mujoco.MjModel.from_xml_string(MODEL), 64, 64) as renderer:
        data = mujoco.MjData(renderer.model)
        mujoco.mj_forward(renderer.model, data)
        renderer.update_scene(data, camera="eye")
        image = renderer.render()
        name = GL.glGetString(GL.GL_RENDERER)
    red = np.array([255, 0, 0])
    if np.abs(image[32, 32] - red).max() > 40 or image[1, 1].max() > 40:
        raise RuntimeError(f"the picture is wrong: centre {image[32, 32].tolist()}, corner {image[1, 1].tolist()}")
    return name.decode() if name else "unknown"


def main() -> None:
    try:
        if len(sys.argv) > 1:
            import torch

            held = torch.zeros(1, device=sys.argv[1])  # which makes the context
        answer = {"renderer": draw()}
        if len(sys.argv) > 1:
            held += 1  # drawing has left it usable
            torch.cuda.synchronize()
    except Exception as e:
        answer = {"error": f"{type(e).__name__}: {e}"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # half-made OpenGL contexts fail noisily in their destructors


if __name__ == "__main__":
    main()
