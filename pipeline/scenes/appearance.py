"""Vary what a scene looks like: light, colours and textures of table, walls and floor, and where the cameras stand."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pipeline.libero.sim.simulator import CAMERAS, Simulator
from pipeline.scenes.things import Things

PLAIN = 0.3
"""Of the pictures: as LIBERO draws them."""
BRIGHTNESS = (0.35, 1.5)  # factors on all lights, and then on each
EACH_LIGHT = (0.7, 1.3)
LIGHT_SHIFT_M = 1.0
TINT = (0.5, 1.1)
SWAPPED = 0.25  # of the background's materials, each: another texture of the scene
SHIFT_M = {"agentview": 0.07, "eye_in_hand": 0.006}
TURN = {"agentview": 0.02, "eye_in_hand": 0.02}  # radians


@contextmanager
def varied(sim: Simulator, things: Things, rng: np.random.Generator) -> Iterator[bool]:
    """Draw another appearance, for this long; give False where it stays LIBERO's own, as it does in a share PLAIN."""
    model = sim.model
    fields = (
        *(model.light_ambient, model.light_diffuse, model.light_specular, model.light_pos, model.mat_rgba),
        *(model.cam_pos, model.cam_quat, model.vis.headlight.ambient, model.vis.headlight.diffuse),
    )
    before = [field.copy() for field in fields]
    try:
        changed = bool(rng.random() >= PLAIN)
        textures = _vary(sim, background(things), rng) if changed else {}
        with sim.textured(textures):
            sim.set_state(sim.state())  # which samples the cameras' poses again
            yield changed
    finally:
        for field, values in zip(fields, before, strict=True):
            field[:] = values


def background(things: Things) -> np.ndarray:
    """Return the numbers of the materials of table, walls, floor and what stands about: of no thing, nor the robot."""
    model = things.model
    robot = np.array([model.body(body).name.startswith("robot0") for body in range(model.nbody)])
    around = (things.owner < 0) & (model.body_weldid == 0)[model.geom_bodyid] & ~robot[model.geom_bodyid]
    of_others = np.append(model.geom_matid[~around], -1)
    return np.setdiff1d(model.geom_matid[around], of_others)


def _vary(sim: Simulator, materials: np.ndarray, rng: np.random.Generator) -> dict[int, int]:
    """Change the model; return the textures to draw instead of others, by material."""
    import mujoco

    model = sim.model
    overall = rng.uniform(*BRIGHTNESS)
    for light in range(model.nlight):
        factor = overall * rng.uniform(*EACH_LIGHT) * rng.uniform(0.9, 1.1, 3)
        for field in (model.light_ambient, model.light_diffuse, model.light_specular):
            field[light] *= factor
        model.light_pos[light] += rng.uniform(-LIGHT_SHIFT_M, LIGHT_SHIFT_M, 3)
    for field in (model.vis.headlight.ambient, model.vis.headlight.diffuse):
        field[:] *= overall
    for ours, camera in CAMERAS.items():
        number = model.camera(camera).id
        model.cam_pos[number] += _within(SHIFT_M[ours], rng)
        turn = np.zeros(4)
        axis = _within(TURN[ours], rng)
        angle = float(np.linalg.norm(axis))
        mujoco.mju_axisAngle2Quat(turn, axis / angle, angle)
        before = model.cam_quat[number].copy()
        mujoco.mju_mulQuat(model.cam_quat[number], turn, before)
    textures = {}
    flat = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_2D)
    for material in materials:
        model.mat_rgba[material, :3] *= rng.uniform(*TINT, 3)
        if rng.random() < SWAPPED:
            textures[int(material)] = int(rng.choice(flat))
    return textures


def _within(radius: float, rng: np.random.Generator) -> np.ndarray:
    """Return a vector (3,) of any direction, no longer than `radius`."""
    direction = rng.normal(size=3)
    return rng.uniform(0, radius) * direction / np.linalg.norm(direction)
