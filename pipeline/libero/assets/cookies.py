"""The cookie box: one printed carton, with the size of LIBERO's `cookies`."""

import numpy as np

from pipeline.libero.assets.meshes import box
from pipeline.libero.assets.mjcf import Files, Visual, collision_box, movable
from pipeline.libero.assets.textures import grid, noise, png

HALF = (0.0307, 0.0418, 0.0100)  # of the drawing; metres
COLLISION_HALF = (0.03104, 0.04131, 0.00940)

RED, WHITE, BROWN = np.array([158.0, 38, 22]), np.array([140.0, 138, 144]), np.array([92.0, 50, 32])
DOUGH, CRUMB, RAISIN = np.array([128.0, 102, 46]), np.array([92.0, 66, 20]), np.array([52.0, 38, 48])
GLYPHS = {
    "C": ("01110", "10001", "10000", "10000", "10000", "10001", "01110"),
    "O": ("01110", "10001", "10001", "10001", "10001", "10001", "01110"),
    "K": ("10001", "10010", "10100", "11000", "10100", "10010", "10001"),
    "I": ("01110", "00100", "00100", "00100", "00100", "00100", "01110"),
    "E": ("11111", "10000", "10000", "11110", "10000", "10000", "11111"),
    "S": ("01111", "10000", "10000", "01110", "00001", "00001", "11110"),
}
COOKIE_PLACES = ((0.30, 0.60), (0.68, 0.62), (0.28, 0.86), (0.70, 0.88), (0.50, 0.75))  # (u, v) of the centres


def files() -> Files:
    """Return the files of the cookie box."""
    x, y, z = HALF
    front, side, check = (0.0, 0.0, 0.75, 1.0), (0.75, 0.0, 0.875, 1.0), (0.875, 0.0, 1.0, 1.0)
    sides = {"+z": front, "-z": front, "+x": side, "-x": side, "+y": check, "-y": check}
    mesh = box((-x, -y, -z), (x, y, z), sides)
    solid = collision_box((0, 0, 0), COLLISION_HALF)
    return movable("stable_hope_objects/cookies", Visual("cookies", mesh), [solid], "texture_map.png", png(_print()))


def _print() -> np.ndarray:
    """Front, narrow side and top side by side: 3/4, 1/8 and 1/8 of the image (256,256,3)."""
    return np.concatenate([_front(256, 192), _side(256, 32), _checks(grid(256, 32), 4, 4)], axis=1)


def _front(height: int, width: int) -> np.ndarray:
    vu = grid(height, width)
    v, u = vu[..., 0], vu[..., 1]
    image = np.where((v < 0.15)[..., None], RED, WHITE * np.ones((height, width, 1)))
    image = np.where((v > 0.42)[..., None], _checks(vu, 6, 9), image)
    stroke = np.abs(v - 0.075 - 0.012 * np.sin(60 * u)) < 0.022  # a line of small print
    image = np.where((stroke & (np.abs(u - 0.5) < 0.40))[..., None], WHITE, image)
    for place in COOKIE_PLACES:
        image = _cookie(image, vu, place)
    arch = 0.19 + 0.10 * (2 * (u - 0.5)) ** 2
    return np.where(_letters("COOKIES", (u - 0.08) / 0.84, (v - arch) / 0.15)[..., None], BROWN, image)


def _side(height: int, width: int) -> np.ndarray:
    vu = grid(height, width)
    image = np.where((vu[..., 1] > 0.62)[..., None], RED, WHITE * np.ones((height, width, 1)))
    word = _letters("COOKIES", (vu[..., 0] - 0.08) / 0.6, (0.58 - vu[..., 1]) / 0.5)
    return np.where(word[..., None], BROWN, image)


def _checks(vu: np.ndarray, across: int, down: int) -> np.ndarray:
    odd = (np.floor(vu[..., 0] * down) + np.floor(vu[..., 1] * across)) % 2
    return np.where(odd[..., None] > 0, RED, WHITE)


def _cookie(image: np.ndarray, vu: np.ndarray, place: tuple[float, float]) -> np.ndarray:
    """Paint one cookie on the front: dough with crumbs, dark rim, raisins."""
    du, dv = vu[..., 1] - place[0], (vu[..., 0] - place[1]) * 4 / 3
    distance = np.hypot(du, dv) / 0.215
    crumbs = noise(vu, 48, 81) > 0.28
    cookie = np.where(crumbs[..., None], CRUMB, DOUGH * 1.12)
    cookie = np.where((noise(vu, 20, 82) > 0.55)[..., None], RAISIN, cookie)
    cookie = np.where((distance > 0.9)[..., None], CRUMB, cookie)
    return np.where((distance < 1)[..., None], cookie, image)


def _letters(word: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return where the word's strokes are, in a frame where it fills 0 <= u, v < 1."""
    bitmap = np.zeros((7, 6 * len(word)), bool)
    for k, letter in enumerate(word):
        bitmap[:, 6 * k : 6 * k + 5] = np.array([[c == "1" for c in row] for row in GLYPHS[letter]])
    inside = (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    row = np.clip((v * 7).astype(int), 0, 6)
    column = np.clip((u * bitmap.shape[1]).astype(int), 0, bitmap.shape[1] - 1)
    return inside & bitmap[row, column]
