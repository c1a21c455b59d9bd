"""Small procedural textures: seeded noise, stretched and coloured. Images are float arrays (H,W,3) in 0..255."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from pipeline.libero.assets.meshes import Number, Profile, profile_length

Colour = tuple[Number, Number, Number]
Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]


def png(image: np.ndarray) -> bytes:
    """Return an image as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.round(image), 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def noise(points: np.ndarray, cells: int, seed: int) -> np.ndarray:
    """Return smooth periodic noise, mean 0, about +-1, at points (...,K) given in units of its period.

    `cells` random values per period along each axis, interpolated by cubic splines.
    """
    lattice = np.random.default_rng(seed).uniform(-1, 1, (cells,) * points.shape[-1])
    return map_coordinates(lattice, np.moveaxis(points, -1, 0) * cells, order=3, mode="grid-wrap")


def grid(height: int, width: int) -> np.ndarray:
    """Return the (v, u) coordinates (H,W,2) of texel centres, 0..1 from the top left."""
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return np.stack([v, u], axis=-1)


def streaks(vu: np.ndarray, rows: int, columns: int, seed: int) -> np.ndarray:
    """Return noise drawn out along the image's rows: `rows` cells down the image, `columns` across."""
    lattice = np.random.default_rng(seed).uniform(-1, 1, (rows, columns))
    places = np.stack([vu[..., 0] * rows, vu[..., 1] * columns])
    return map_coordinates(lattice, places, order=3, mode="grid-wrap")


def coloured(base: Colour, tone: np.ndarray, tint: Colour = (1, 1, 1)) -> np.ndarray:
    """Return the base colour plus tone (H,W) times tint."""
    return np.asarray(base, float) + tone[..., None] * np.asarray(tint, float)


def light_wood(size: int = 512) -> np.ndarray:
    """Pale table wood, grain along the rows."""
    vu = grid(size, size)
    bent = vu + np.stack([0.02 * noise(vu, 4, 11), np.zeros(vu.shape[:2])], axis=-1)
    fine = streaks(bent, 160, 4, 12)
    broad = streaks(bent, 16, 3, 13)
    veins = np.clip(streaks(bent, 48, 2, 14) - 0.55, 0, None)
    return coloured((197, 181, 162), 2.4 * fine + 5.5 * broad, (0.9, 1, 1.2)) - veins[..., None] * (16, 20, 30)


def dark_wood(size: int = 128) -> np.ndarray:
    """Near-black furniture wood, grain along the rows."""
    vu = grid(size, size)
    return coloured((52, 45, 39), 2.5 * streaks(vu, 64, 3, 21) + 3.0 * streaks(vu, 8, 2, 22))


def brushed_metal(size: int = 256) -> np.ndarray:
    """Brushed steel: strokes along the rows, brighter towards the right and there towards the top."""
    vu = grid(size, size)
    sheen = 82 * vu[..., 1] - 42 * vu[..., 1] * vu[..., 0]
    return coloured((75, 75, 75), sheen + 6 * streaks(vu, 128, 6, 31) + 5 * streaks(vu, 256, 24, 32))


def plaster(size: int = 256) -> np.ndarray:
    """Smooth pale plaster."""
    vu = grid(size, size)
    return coloured((220, 217, 209), 2.0 * noise(vu, 8, 41) + 1.5 * noise(vu, 32, 42) + noise(vu, 96, 43))


def floor_planks(size: int = 256) -> np.ndarray:
    """Grey wood-look tiles in four staggered courses with light joints."""
    vu = grid(size, size)
    tone = 9 * streaks(vu, 96, 6, 51) + 8 * streaks(vu, 24, 4, 52)
    course = np.floor(vu[..., 0] * 4)
    joint = np.array([1.0, 0.24, 0.49, 0.75])[course.astype(int)]
    near = np.minimum(np.abs(vu[..., 0] * 4 - course) / 4, np.abs(vu[..., 1] - joint))
    return np.where(near[..., None] < 0.005, 232.0, coloured((193, 184, 175), tone))


def around(profile: Profile, height: int, width: int, paint: Paint) -> bytes:
    """Paint the texture of a turned mesh (`meshes.revolve`) by the place of each texel on its surface.

    Args:
        paint: takes points (H,W,3) in metres and the position along the profile (H,W), a fractional index of its
            points; returns colours (H,W,3).
    """
    vu = grid(height, width)
    lengths = profile_length(profile)
    along = (1 - vu[..., 0]) * lengths[-1]  # the profile starts at the bottom row
    index = np.interp(along, lengths, np.arange(len(lengths)))
    points = np.asarray(profile, float)
    radius, z = np.interp(index, np.arange(len(points)), points[:, 0]), np.interp(along, lengths, points[:, 1])
    azimuth = 2 * np.pi * vu[..., 1]
    return png(paint(np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=-1), index))
