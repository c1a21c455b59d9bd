"""Bowl, plate and ramekin: turned shapes with a hollow inside, and walls of boxes to collide with.

Sizes, wall positions and masses are those of LIBERO's akita_black_bowl, plate and glazed_rim_porcelain_ramekin.
"""

import numpy as np

from pipeline.libero.assets.meshes import Mesh, revolve
from pipeline.libero.assets.mjcf import Element, Files, Visual, collision_box, collision_ring, movable
from pipeline.libero.assets.textures import around, noise

FOLDER = "stable_scanned_objects"
RAMEKIN_NAME = "glazed_rim_porcelain_ramekin"

BOWL = (
    (0.0, 0.0035), (0.0185, 0.0035), (0.0205, 0.0005), (0.0245, 0.0005), (0.0355, 0.0075), (0.0440, 0.0160),
    (0.0490, 0.0330), (0.0533, 0.0522), (0.0524, 0.0528), (0.0512, 0.0522), (0.0465, 0.0335), (0.0415, 0.0175),
    (0.0330, 0.0105), (0.0215, 0.0070), (0.0060, 0.0066), (0.0, 0.0065),
)  # fmt: skip
BOWL_RIM = 8  # index of the profile's point on top of the rim
PLATE = (
    (0.0, 0.0012), (0.0400, 0.0012), (0.0430, 0.0), (0.0455, 0.0008), (0.0580, 0.0075), (0.0680, 0.0135),
    (0.0686, 0.0160), (0.0675, 0.0165), (0.0570, 0.0110), (0.0470, 0.0070), (0.0420, 0.0052), (0.0060, 0.0049),
    (0.0, 0.0048),
)  # fmt: skip
RAMEKIN = (
    (0.0, 0.0025), (0.0240, 0.0020), (0.0270, 0.0), (0.0360, 0.0005), (0.0390, 0.0040), (0.0425, 0.0340),
    (0.0440, 0.0360), (0.0443, 0.0420), (0.0430, 0.0433), (0.0405, 0.0420), (0.0365, 0.0330), (0.0352, 0.0110),
    (0.0330, 0.0078), (0.0060, 0.0078), (0.0, 0.0078),
)  # fmt: skip

# Azimuths of the wall boxes, in degrees. LIBERO's were fitted to the mesh: their gaps and doubles decide how a bowl
# that drops on the ramekin tilts (task 5), so they are kept.
BELLY_DEG = (
    90.2, 116.0, 141.0, 166.3, -169.1, -143.5, -117.7, -92.1, -66.2, -41.1, -15.8, -15.8, 0.4, 24.9, 49.9, 69.8,
)  # fmt: skip
WALL_DEG = (
    90.1, 111.5, 132.3, 153.4, 174.4, -165.2, -144.3, -123.1, -102.4, -81.5, -60.4, -39.6, -18.2, 2.3, 2.3, 22.9,
    43.5, 64.0,
)  # fmt: skip
PLATE_RINGS = np.array([0.0520, 0.0560, 0.0655])  # radii of the red lines, metres
PLATE_DEG = (90.0, 90.0, 47.9, 3.7, -40.8, -87.3, -133.7, -178.5, 135.5)
RAMEKIN_DEG = (
    -90.0, 91.5, 1.0, -179.4, -179.4, -155.7, -133.3, -110.7, -64.3, -39.5, -18.4, 26.0, 48.4, 71.7, 116.8, 141.2,
    161.8,
)  # fmt: skip


def files() -> Files:
    """Return the files of the three objects."""
    return (
        _object("akita_black_bowl", revolve(BOWL, 24), _bowl_collision(), around(BOWL, 384, 256, _bowl_glaze))
        | _object("plate", revolve(PLATE, 32), _plate_collision(), around(PLATE, 256, 512, _plate_glaze))
        | _object(RAMEKIN_NAME, revolve(RAMEKIN, 24), _ramekin_collision(), around(RAMEKIN, 256, 256, _ramekin_glaze))
    )


def _object(name: str, mesh: Mesh, collision: list[Element], png: bytes) -> Files:
    return movable(f"{FOLDER}/{name}", Visual(name, mesh), collision, "texture.png", png)


def _bowl_collision() -> list[Element]:
    foot = [
        collision_box(pos, half)
        for pos, half in (
            ((0, -0.00075, 0.00417), (0.01617, 0.01547, 0.00258)),
            ((0, -0.02021, 0.00417), (0.01617, 0.00431, 0.00258)),
            ((0, 0.01490, 0.00417), (0.01617, 0.00741, 0.00258)),
            ((0.01821, 0, 0.00417), (0.00495, 0.01547, 0.00258)),
            ((-0.01810, 0, 0.00417), (0.00453, 0.01547, 0.00258)),
        )
    ]
    belly = collision_ring(BELLY_DEG[3:], 0.03348, 0.00984, 60.0, (0.00071, 0.00992, 0.01187), -0.012)
    # the fit's first three boxes lie a little lower, steeper and straighter
    belly += collision_ring(BELLY_DEG[:1], 0.03361, 0.00939, 60.8, (0.00071, 0.00992, 0.01187), 0.001)
    belly += collision_ring(BELLY_DEG[1:2], 0.03356, 0.00959, 60.5, (0.00071, 0.00992, 0.01187), -0.003)
    belly += collision_ring(BELLY_DEG[2:3], 0.03351, 0.00975, 60.2, (0.00071, 0.00992, 0.01187), -0.007)
    wall = collision_ring(WALL_DEG, 0.04712, 0.03367, 14.7, (0.00128, 0.00934, 0.01875), -0.002)
    wall += collision_ring([77.0], 0.04712, 0.03367, 14.7, (0.00125, 0.00444, 0.01872), -0.002)
    return foot + belly + wall


def _plate_collision() -> list[Element]:
    middle = collision_box(
        (0, 0, 0.00313), (0.02851, 0.03057, 0.00222), np.array([np.cos(0.013), 0, -np.sin(0.013), 0])
    )
    rim = collision_ring(PLATE_DEG, 0.04828, 0.00696, 70.5, (0.00254, 0.02851, 0.01913), -0.026)
    return [middle, *rim]


def _ramekin_collision() -> list[Element]:
    floor = [
        collision_box(pos, half)
        for pos, half in (
            ((0, 0, 0.00413), (0.02436, 0.02436, 0.00319)),
            ((-0.02820, 0, 0.00413), (0.00373, 0.02436, 0.00319)),
            ((0, -0.02675, 0.00413), (0.02436, 0.00373, 0.00319)),
            ((0, 0.02675, 0.00413), (0.02436, 0.00373, 0.00319)),
            ((-0.03172, 0, 0.00413), (0.00373, 0.01209, 0.00319)),
            ((0.03291, 0, 0.00413), (0.00373, 0.01209, 0.00319)),
            ((0, -0.03290, 0.00413), (0.01209, 0.00373, 0.00319)),
            ((0.00085, 0.03290, 0.00413), (0.01209, 0.00373, 0.00319)),
        )
    ]
    wall = collision_ring(RAMEKIN_DEG, 0.03824, 0.02166, 8.57, (0.00260, 0.00948, 0.02085))
    return floor + wall


def _bowl_glaze(points: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Speckled grey with dark crackle, darker outside, a thin straw-coloured rim."""
    place = points / 0.16
    speckle = noise(place, 96, 60) * 0.45 + noise(place, 64, 61) * 0.5 + noise(place, 32, 62) * 0.45
    crackle = np.abs(noise(place, 16, 63) + 0.35 * noise(place, 32, 64))
    tone = 164 + 62 * speckle - 80 * np.clip(1 - crackle / 0.05, 0, 1)
    tone = np.where(along < BOWL_RIM, tone * 0.85, tone)
    colour = tone[..., None] * np.array([0.97, 1.0, 1.0])
    rim = np.abs(along - BOWL_RIM) < 1.0
    return np.where(rim[..., None], 0.5 * colour + np.array([62, 60, 46]), colour)


def _plate_glaze(points: np.ndarray, along: np.ndarray) -> np.ndarray:
    """White with a red woven border between two red rings."""
    radius = np.hypot(points[..., 0], points[..., 1])
    azimuth = np.arctan2(points[..., 1], points[..., 0])
    turn = 48 * azimuth / (2 * np.pi)
    slope = (radius - 0.056) / 0.009 * 1.5
    weave = np.minimum(_stripe(turn + slope), _stripe(turn - slope))
    ring = np.abs(radius[..., None] - PLATE_RINGS).min(axis=-1) < 0.0006
    border = (radius > PLATE_RINGS[1]) & (radius < PLATE_RINGS[2])
    red = np.where(ring, 0.9, np.where(border, 0.12 + 0.6 * (weave < 0.18), 0.0))[..., None]
    return (1 - red) * np.array([222, 221, 216]) + red * np.array([172, 66, 64])


def _ramekin_glaze(points: np.ndarray, along: np.ndarray) -> np.ndarray:
    """White porcelain, fluted outside below a smooth rim."""
    azimuth = np.arctan2(points[..., 1], points[..., 0])
    flute = (along > 4) & (along < 5)
    tone = 238 + 9 * noise(points / 0.16, 32, 71) - 30 * flute * np.clip(np.cos(24 * azimuth), 0, 1)
    return tone[..., None] * np.array([1.0, 1.0, 1.01])


def _stripe(phase: np.ndarray) -> np.ndarray:
    return np.abs(phase - np.round(phase))
