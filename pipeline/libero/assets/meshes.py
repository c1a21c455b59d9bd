"""Triangle meshes of few faces, and their Wavefront OBJ text.

Lengths are metres. Faces are counter-clockwise seen from outside; texture coordinates have v = 0 at the bottom row of
the image, as OBJ has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CREASE = np.cos(np.radians(35.0))  # profile corners sharper than this are shaded as edges
FACES = {"-x": (0, -1), "+x": (0, 1), "-y": (1, -1), "+y": (1, 1), "-z": (2, -1), "+z": (2, 1)}

Number = float | int
Point = tuple[Number, Number, Number]
Profile = Sequence[tuple[Number, Number]]
Rectangle = tuple[Number, Number, Number, Number]


@dataclass(frozen=True)
class Mesh:
    """Vertices (N,3), unit normals (N,3), texture coordinates (N,2) and triangles (F,3) of indices into them."""

    vertices: np.ndarray
    normals: np.ndarray
    texcoords: np.ndarray
    faces: np.ndarray

    def moved(self, offset: Point) -> "Mesh":
        """Return the mesh shifted by `offset` metres."""
        return Mesh(self.vertices + np.asarray(offset), self.normals, self.texcoords, self.faces)

    def turned(self, matrix: np.ndarray) -> "Mesh":
        """Return the mesh under a rotation matrix (3,3)."""
        return Mesh(self.vertices @ matrix.T, self.normals @ matrix.T, self.texcoords, self.faces)

    def obj(self) -> bytes:
        """Return the OBJ text; rounded to a micrometre, so that it does not depend on the machine's last bits."""
        lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in _rounded(self.vertices)]
        lines += [f"vt {u:.6f} {v:.6f}" for u, v in _rounded(self.texcoords)]
        lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in _rounded(self.normals, 4)]
        lines += ["f " + " ".join(f"{i}/{i}/{i}" for i in face) for face in (self.faces + 1).tolist()]
        return ("\n".join(lines) + "\n").encode()


def joined(*meshes: Mesh) -> Mesh:
    """Return all meshes as one."""
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.texcoords for m in meshes]),
        np.concatenate([m.faces + start for m, start in zip(meshes, starts, strict=True)]),
    )


def revolve(profile: Profile, segments: int) -> Mesh:
    """Turn a profile about the z axis.

    Args:
        profile: (radius, height) points, from the axis at the bottom outwards, up, over the rim and back to the axis.
        segments: flat sides around; u runs once around, v along the profile's length.
    """
    points = np.asarray(profile, float)
    azimuths = 2 * np.pi * np.arange(segments + 1) / segments
    start_normals, end_normals = _profile_normals(points)
    v = profile_length(profile)
    v = v / v[-1]
    parts = []
    for i in range(len(points) - 1):
        rings = [(points[i], start_normals[i], v[i]), (points[i + 1], end_normals[i], v[i + 1])]
        vertices = np.concatenate([_around(p, azimuths) for p, _, _ in rings])
        normals = np.concatenate([_around(n, azimuths) for _, n, _ in rings])
        texcoords = np.concatenate([np.c_[azimuths / (2 * np.pi), np.full(segments + 1, t)] for _, _, t in rings])
        parts.append(Mesh(vertices, normals, texcoords, _band_faces(segments, *(points[i : i + 2, 0] > 0).tolist())))
    return joined(*parts)


def profile_length(profile: Profile) -> np.ndarray:
    """Return the length (P,) along the profile up to each of its points, in metres."""
    steps = np.linalg.norm(np.diff(np.asarray(profile, float), axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def box(low: Point, high: Point, images: Mapping[str, Rectangle] | None = None) -> Mesh:
    """A box between two corners.

    Args:
        images: for each side ("+x", "-x", ...) the rectangle (u0, v0, u1, v1) of the texture on it, seen from outside
            with +z up on the walls and +y up on top and bottom. Without it all sides show the texture at 4 repeats
            per metre, its rows along the side's longer edge.
    """
    lo, hi = np.asarray(low, float), np.asarray(high, float)
    parts = []
    for side, (axis, sign) in FACES.items():
        normal = np.zeros(3)
        normal[axis] = sign
        up = np.array([0.0, 1.0, 0.0]) if axis == 2 else np.array([0.0, 0.0, 1.0])
        right = np.cross(up, normal)
        half = (hi - lo) / 2
        width, height = abs(right @ half), abs(up @ half)
        middle = (hi + lo) / 2 + normal * half[axis]
        corners = [middle + right * width * a + up * height * b for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        if images is None:
            a, b = 8 * width, 8 * height
            uv = [(0, 0), (a, 0), (a, b), (0, b)] if width >= height else [(0, 0), (0, a), (b, a), (b, 0)]
        else:
            u0, v0, u1, v1 = images[side]
            uv = [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]
        parts.append(_polygon(np.array(corners), np.array(uv, float), normal))
    return joined(*parts)


def prism(outline: Profile, x_min: Number, x_max: Number) -> Mesh:
    """Extrude a convex outline of (y, z) points, counter-clockwise seen from +x, along x."""
    yz = np.asarray(outline, float)
    n = len(yz)
    near, far = np.c_[np.full(n, x_max), yz], np.c_[np.full(n, x_min), yz]
    flat = np.zeros((n, 2))
    parts = [_polygon(near, flat, np.array([1.0, 0, 0])), _polygon(far[::-1], flat, np.array([-1.0, 0, 0]))]
    for i in range(n):
        j = (i + 1) % n
        dy, dz = yz[j] - yz[i]
        normal = np.array([0.0, dz, -dy]) / np.hypot(dy, dz)
        parts.append(_polygon(np.array([near[i], far[i], far[j], near[j]]), np.zeros((4, 2)), normal))
    return joined(*parts)


def _polygon(corners: np.ndarray, uv: np.ndarray, normal: np.ndarray) -> Mesh:
    n = len(corners)
    fan = np.array([(0, i, i + 1) for i in range(1, n - 1)])
    return Mesh(corners, np.tile(normal, (n, 1)), uv, fan)


def _around(radius_height: np.ndarray, azimuths: np.ndarray) -> np.ndarray:
    radius, height = radius_height
    return np.c_[radius * np.cos(azimuths), radius * np.sin(azimuths), np.full(len(azimuths), height)]


def _profile_normals(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the (radial, vertical) normals at the start and at the end of each of the profile's pieces."""
    tangents = np.diff(points, axis=0)
    flat = np.c_[tangents[:, 1], -tangents[:, 0]] / np.linalg.norm(tangents, axis=1, keepdims=True)
    start, end = flat.copy(), flat.copy()
    for i in range(1, len(flat)):
        if flat[i - 1] @ flat[i] > CREASE:
            mean = flat[i - 1] + flat[i]
            end[i - 1] = start[i] = mean / np.linalg.norm(mean)
    return start, end


def _band_faces(segments: int, start_open: bool, end_open: bool) -> np.ndarray:
    """Triangles of one band; an end on the axis has only one triangle per side."""
    faces = []
    for j in range(segments):
        a, b = j, segments + 1 + j
        if start_open:
            faces.append((a, a + 1, b + 1))
        if end_open:
            faces.append((a, b + 1, b))
    return np.array(faces)


def _rounded(values: np.ndarray, digits: int = 6) -> np.ndarray:
    return np.round(values, digits) + 0.0  # + 0.0 turns -0 into 0
