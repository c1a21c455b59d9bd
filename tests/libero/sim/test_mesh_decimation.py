import numpy as np

from pipeline.libero.sim.mesh_decimation import FACES, cluster, simplify


def grid(n: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """A square of n x n vertices and its triangles."""
    x, y = np.meshgrid(np.linspace(0, size, n), np.linspace(0, size, n), indexing="ij")
    vertices = np.stack([x.ravel(), y.ravel(), np.zeros(n * n)], 1)
    i = np.arange(n * n).reshape(n, n)
    lower = np.stack([i[:-1, :-1], i[1:, :-1], i[1:, 1:]], -1).reshape(-1, 3)
    upper = np.stack([i[:-1, :-1], i[1:, 1:], i[:-1, 1:]], -1).reshape(-1, 3)
    return vertices, np.concatenate([lower, upper])


def normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = vertices[faces].transpose(1, 0, 2)
    return np.cross(b - a, c - a) / 2


def test_a_fine_square_becomes_a_coarse_one_of_nearly_the_same_area() -> None:
    vertices, faces = grid(101, 0.1)
    new, kept = cluster(vertices, faces, 0.005)
    assert len(new) == 2 * 20 * 20  # 21 cells along an edge, the last one holding the border
    area = normals(vertices, new)
    assert (area[:, 2] > 0).all()  # no face was turned over
    assert 0.9 < area[:, 2].sum() / 0.01 <= 1
    assert len(kept) == len(new)


def test_a_coarse_mesh_stays_as_it_is() -> None:
    vertices, faces = grid(5, 1.0)
    new, kept = cluster(vertices, faces, 0.005)
    np.testing.assert_array_equal(new, faces)
    np.testing.assert_array_equal(kept, np.arange(len(faces)))


def test_no_vertex_moves_further_than_a_cells_diagonal() -> None:
    rng = np.random.default_rng(0)
    vertices, faces = rng.uniform(0, 0.05, (3000, 3)), rng.integers(0, 3000, (4000, 3))
    new, kept = cluster(vertices, faces, 0.005)
    moved = np.linalg.norm(vertices[new] - vertices[faces[kept]], axis=-1)
    assert moved.max() <= 0.005 * np.sqrt(3)
    assert len({tuple(sorted(face)) for face in new.tolist()}) == len(new)
    assert all(len(set(face)) == 3 for face in new.tolist())


MODEL = """
<mujoco>
  <asset>
    <mesh name="robot0_seen" vertex="{vertices}" face="{faces}" inertia="shell"/>
    <mesh name="robot0_touched" vertex="{vertices}" face="{faces}" inertia="shell"/>
    <mesh name="bowl" vertex="{vertices}" face="{faces}" inertia="shell"/>
  </asset>
  <worldbody>
    <geom type="mesh" mesh="robot0_seen" contype="0" conaffinity="0"/>
    <geom type="mesh" mesh="robot0_touched" contype="0" conaffinity="0"/>
    <geom type="mesh" mesh="robot0_touched"/>
    <geom type="mesh" mesh="bowl" contype="0" conaffinity="0"/>
  </worldbody>
</mujoco>
"""


ONE_MESH = """
<mujoco>
  <asset><mesh name="seen" vertex="{vertices}" face="{faces}" inertia="shell"/></asset>
  <worldbody><geom type="mesh" mesh="seen" contype="0" conaffinity="0"/></worldbody>
</mujoco>
"""


def test_only_meshes_without_collisions_change() -> None:
    import mujoco

    vertices, faces = grid(31, 0.03)
    vertices[:, 2] = 10 * vertices[:, 0] * vertices[:, 1]  # a mesh that collides needs a volume
    flat = {"vertices": " ".join(map(str, vertices.ravel())), "faces": " ".join(map(str, faces.ravel()))}
    model = mujoco.MjModel.from_xml_string(MODEL.format(**flat))
    before = model.mesh_face.copy()
    simplify(model)
    counts = {model.mesh(i).name: int(model.mesh_facenum[i]) for i in range(model.nmesh)}
    assert counts["robot0_touched"] == len(faces)
    assert 0 < counts["robot0_seen"] < len(faces) / 5
    assert counts["bowl"] == counts["robot0_seen"]
    touched = slice(int(model.mesh_faceadr[1]), int(model.mesh_faceadr[2]))
    np.testing.assert_array_equal(model.mesh_face[touched], before[touched])


def test_a_mesh_with_many_faces_gets_larger_cubes_unless_it_is_furniture() -> None:
    import mujoco

    for side, limited in ((0.3, True), (1.2, False)):
        vertices, faces = grid(121, side)
        vertices[:, 2] = vertices[:, 0] * vertices[:, 1]
        flat = {"vertices": " ".join(map(str, vertices.ravel())), "faces": " ".join(map(str, faces.ravel()))}
        model = mujoco.MjModel.from_xml_string(ONE_MESH.format(**flat))
        simplify(model)
        assert (model.mesh_facenum[0] <= FACES) == limited
        assert model.mesh_facenum[0] > FACES / 3
