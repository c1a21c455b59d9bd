"""Simplify meshes of a compiled MuJoCo model in place, for drawing only."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

CELL_M = 0.004
"""Edge of the cubes whose vertices become one. At 128 pixels, agentview sees some 8 mm in a pixel, the hand's 2 mm."""
FACES = 2500
"""Of a mesh, at most; one that still has more gets larger cubes. In a picture it covers no more pixels."""
GROWTH = 1.25
LARGE_M = 0.5
"""A mesh that is longer is a piece of furniture or a wall: no limit to its faces, whose vertices lie far apart."""
LARGE_CELL_M = 0.012


def simplify(model: Any) -> None:
    """Cluster the vertices of meshes that are only drawn.

    Meshes that take part in collisions, by any of their geoms, are left alone: physics must not change.

    Args:
        model: mujoco.MjModel; its mesh_face, mesh_facenormal, mesh_facetexcoord and mesh_facenum change.
    """
    import mujoco

    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    physical = set(model.geom_dataid[is_mesh & collides].tolist())
    for i in range(model.nmesh):
        if i not in physical:
            _simplify(model, i)


def _simplify(model: Any, i: int) -> None:
    faces = slice(model.mesh_faceadr[i], model.mesh_faceadr[i] + model.mesh_facenum[i])
    vertices = slice(model.mesh_vertadr[i], model.mesh_vertadr[i] + model.mesh_vertnum[i])
    points = model.mesh_vert[vertices]
    large = float(np.ptp(points, axis=0).max()) > LARGE_M
    cell = LARGE_CELL_M if large else CELL_M
    new, kept = cluster(points, model.mesh_face[faces], cell)
    while len(kept) > FACES and not large:
        cell *= GROWTH
        new, kept = cluster(points, model.mesh_face[faces], cell)
    start, n = faces.start, len(kept)
    model.mesh_face[start : start + n] = new
    # Corners keep their own normals and texture coordinates, so that shading stays as fine as it was.
    model.mesh_facenormal[start : start + n] = model.mesh_facenormal[faces][kept]
    model.mesh_facetexcoord[start : start + n] = model.mesh_facetexcoord[faces][kept]
    model.mesh_facenum[i] = n


def cluster(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], cell: float
) -> tuple[Int[np.ndarray, "K 3"], Int[np.ndarray, "K"]]:
    """Merge the vertices in each cube of a grid and drop the faces that collapse.

    Returns:
        The remaining faces, as indices into `vertices` (of each cube's vertices, the one nearest to their mean), and
        their indices in `faces`.
    """
    cells = np.floor((vertices - vertices.min(0)) / cell).astype(np.int64)
    _, member = np.unique(_as_one_number(cells), return_inverse=True)
    counts = np.bincount(member)
    centres = np.stack([np.bincount(member, vertices[:, k]) / counts for k in range(3)], 1)
    distance = np.linalg.norm(vertices - centres[member], axis=1)
    order = np.lexsort((distance, member))
    nearest = order[np.searchsorted(member[order], np.arange(len(counts)))]
    merged = nearest[member][faces]
    a, b, c = merged.T
    kept = np.flatnonzero((a != b) & (b != c) & (c != a))
    _, first = np.unique(_as_one_number(np.sort(merged[kept], axis=1).astype(np.int64)), return_index=True)
    kept = kept[np.sort(first)]
    return merged[kept].astype(faces.dtype), kept


def _as_one_number(triples: Int[np.ndarray, "N 3"]) -> Int[np.ndarray, "N"]:
    """Number triples of small non-negative integers; np.unique is ten times faster on numbers than on rows."""
    base = int(triples.max(initial=0)) + 1
    return (triples[:, 0] * base + triples[:, 1]) * base + triples[:, 2]
