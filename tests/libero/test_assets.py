"""The embedded asset pack: deterministic files, and a scene that weighs, settles and succeeds as LIBERO's own does."""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.params import Sim
from pipeline.errors import AssetError
from pipeline.libero.assets import COVERED_SUITES, build
from pipeline.libero.assets.meshes import Mesh, box, prism, revolve
from pipeline.libero.assets.pack import MANIFEST, files
from pipeline.libero.simulator import Simulator
from pipeline.libero.suites import init_states, tasks
from tests.official import OFFICIAL_ASSETS

SIM = Sim(assets="embedded", assets_path=None, render="full", gl="auto", image_size=128, settle_steps=10, seed=0)
MOVABLE = ("akita_black_bowl_1", "plate_1", "glazed_rim_porcelain_ramekin_1", "cookies_1")

# World positions of MOVABLE ten steps after init state 0 with seed 0, measured with LIBERO's own assets, mujoco 3.3.2.
SETTLED = (
    ((-0.0635, 0.2020, 0.8984), (0.0534, 0.2052, 0.9025), (-0.1974, 0.1891, 0.8993), (0.0579, 0.0264, 0.9094)),
    ((-0.1948, 0.3152, 0.8984), (0.0698, 0.1882, 0.9025), (-0.1858, 0.1938, 0.8993), (0.0643, 0.0315, 0.9094)),
    ((-0.0750, 0.0150, 0.8984), (0.0716, 0.2004, 0.9025), (-0.2014, 0.1870, 0.8993), (0.0767, 0.0375, 0.9094)),
    ((0.0679, 0.0237, 0.9172), (0.0698, 0.1900, 0.9025), (-0.2139, 0.2109, 0.8993), (0.0678, 0.0239, 0.9094)),
    ((0.0851, -0.1300, 1.0626), (0.0551, 0.2097, 0.9025), (-0.2024, 0.1918, 0.8993), (0.0728, 0.0408, 0.9094)),
    ((-0.2114, 0.2022, 0.9344), (0.0735, 0.1855, 0.9025), (-0.1969, 0.2016, 0.8993), (0.0568, 0.0425, 0.9094)),
    ((0.1373, -0.0705, 0.8984), (0.0689, 0.1944, 0.9025), (-0.2133, 0.1895, 0.8993), (0.0734, 0.0331, 0.9094)),
    ((-0.2621, -0.1314, 0.9289), (0.0601, 0.2050, 0.9025), (-0.1932, 0.2088, 0.8993), (0.0568, 0.0234, 0.9094)),
    ((0.0071, 0.2982, 0.8984), (0.0552, 0.1890, 0.9025), (-0.1949, 0.2097, 0.8993), (0.0701, 0.0446, 0.9094)),
    ((0.0390, -0.2652, 1.1264), (0.0482, 0.2147, 0.9025), (-0.2020, 0.2048, 0.8993), (0.0667, 0.0282, 0.9094)),
)
MASSES = {  # kilograms, of LIBERO's own bodies
    "akita_black_bowl_1_main": 0.0055913,
    "plate_1_main": 0.0115221,
    "glazed_rim_porcelain_ramekin_1_main": 0.0096596,
    "cookies_1_main": 0.0096426,
    "wooden_cabinet_1_cabinet_top": 3.0,
    "flat_stove_1_button": 3.0,
}


def volume(mesh: Mesh) -> float:
    """Signed volume of a closed surface: positive if all its faces look outward."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def test_meshes_enclose_their_volume() -> None:
    assert volume(box((0, 1, 2), (3, 3, 3))) == pytest.approx(6)
    tube = revolve(((0, 0), (2, 0), (2, 5), (1, 5), (1, 1), (0, 1)), 64)
    area = 32 * np.sin(2 * np.pi / 64)  # of a regular polygon of 64 corners and radius 1
    assert volume(tube) == pytest.approx(area * (4 * 5 - 1 * 4))
    assert volume(prism(((0, 0), (2, 0), (0, 2)), -1, 2)) == pytest.approx(6)


@pytest.mark.parametrize("mesh", [box((0, 0, 0), (1, 2, 3)), revolve(((0, 0), (1, 0), (1.4, 1), (0, 1)), 12)])
def test_normals_agree_with_the_faces(mesh: Mesh) -> None:
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    flat = np.cross(b - a, c - a)
    assert (np.einsum("ij,ikj->ik", flat, mesh.normals[mesh.faces]) > 0).all()


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("assets"))


def test_a_pack_has_few_faces_and_is_small(pack: Path) -> None:
    faces = {path.stem: path.read_bytes().count(b"\nf ") for path in pack.rglob("*.obj")}
    assert len(faces) == 13
    assert 1500 < sum(faces.values()) + faces["akita_black_bowl_vis"] < 5000  # each task has two bowls
    assert sum(map(len, contents(pack).values())) < 1.5e6


def test_two_builds_have_the_same_bytes(pack: Path) -> None:
    assert contents(pack) == {**files(), MANIFEST: (pack / MANIFEST).read_bytes()}


def test_a_second_call_writes_nothing(pack: Path) -> None:
    stamp = pack.stat().st_mtime_ns
    assert build(pack.parent) == pack
    assert pack.stat().st_mtime_ns == stamp
    assert list(pack.parent.iterdir()) == [pack]


def test_a_damaged_pack_is_built_anew(pack: Path, tmp_path: Path) -> None:
    copy = tmp_path / pack.name
    shutil.copytree(pack, copy)
    (copy / "scenes" / "libero_tabletop_base_style.xml").write_bytes(b"<mujoco>")
    (copy / "textures" / "light-gray-plaster.png").unlink()
    assert build(tmp_path) == copy
    assert contents(copy) == contents(pack)


def test_concurrent_builders_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert len(set(pool.map(build, [tmp_path] * 2, chunksize=1))) == 1
    assert not list(tmp_path.glob(".partial*"))


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(AssetError, match=str(blocked)):
        build(blocked / "assets")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@contextmanager
def settled(task_id: int, sim: Sim = SIM) -> Iterator[Simulator]:
    """The task ten steps after its init state 0."""
    task = tasks(COVERED_SUITES[0], [task_id])[0]
    with Simulator(task, sim) as simulator:
        simulator.reset(init_states(task)[0], seed=0)
        yield simulator


@pytest.mark.sim
@pytest.mark.parametrize("task_id", range(10))
def test_objects_settle_where_liberos_do(task_id: int) -> None:
    with settled(task_id) as simulator:
        assert len(simulator.state()) == 92
        places = np.array([simulator.data.body(f"{name}_main").xpos for name in MOVABLE])
        assert np.linalg.norm(places - SETTLED[task_id], axis=1) == pytest.approx(0, abs=0.005)
        assert not simulator.success()


@pytest.fixture(scope="module")
def drawer_task() -> Iterator[Simulator]:
    with settled(4) as simulator:
        yield simulator


@pytest.mark.sim
def test_masses_are_liberos(drawer_task: Simulator) -> None:
    for name, mass in MASSES.items():
        assert drawer_task.model.body(name).mass[0] == pytest.approx(mass, rel=0.005), name


@pytest.mark.sim
def test_a_bowl_put_on_the_plate_is_success(drawer_task: Simulator) -> None:
    before = drawer_task.state()
    bowl, plate = (drawer_task.data.joint(f"{name}_joint0").qpos for name in MOVABLE[:2])
    bowl[:3] = plate[:3] + np.array([0.004, 0, 0.03])
    assert not drawer_task.success()  # in the air
    for _ in range(6):
        drawer_task.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert drawer_task.success()
    drawer_task.set_state(before)


@pytest.mark.sim
def test_the_drawer_slides_and_tells_that_it_is_open(drawer_task: Simulator) -> None:
    joint = "wooden_cabinet_1_top_level"
    region = drawer_task.env.object_states_dict["wooden_cabinet_1_top_region"]
    assert drawer_task.model.joint(joint).range == pytest.approx((-0.16, 0.01))
    assert region.is_open() and not region.is_close()
    assert region.check_contain(drawer_task.env.object_states_dict["akita_black_bowl_1"])
    before = drawer_task.state()
    drawer_task.data.joint(joint).qpos[0] = 0.002
    assert region.is_close() and not region.is_open()
    drawer_task.set_state(before)


@pytest.mark.sim
def test_the_picture_has_liberos_colours(drawer_task: Simulator) -> None:
    """Means over patches of an agentview image; expected: a published observation of LIBERO's own assets."""
    image = drawer_task.observe().images["agentview"] / 1.0

    def patch(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return image[top:bottom, left:right].mean(axis=(0, 1))

    assert patch(114, 123, 34, 91) == pytest.approx((192, 176, 156), abs=6)  # table
    assert patch(6, 34, 3, 28) == pytest.approx((108, 107, 103), abs=5)  # wall


@pytest.mark.sim
@pytest.mark.skipif(not OFFICIAL_ASSETS.is_dir(), reason="needs a copy of LIBERO's own assets")
def test_the_model_is_liberos() -> None:
    """Same joints at the same addresses, same sites, masses, moments of inertia and extents of collision geometry."""
    with ExitStack() as stack:
        official = replace(SIM, assets="official", assets_path=str(OFFICIAL_ASSETS))
        ours, theirs = (stack.enter_context(settled(5, sim)) for sim in (SIM, official))
        joints = facts(ours, "joint", lambda m: (*m.type, *m.qposadr, *m.range, *m.damping))
        assert joints == facts(theirs, "joint", lambda m: (*m.type, *m.qposadr, *m.range, *m.damping))
        for kind, read, tolerance in (
            ("body", lambda m: (*m.mass, *np.sort(m.inertia)), {"rel": 0.02, "abs": 1e-7}),
            ("site", lambda m: (*m.pos, *m.size, *m.type), {"abs": 1e-4}),
        ):
            expected = facts(theirs, kind, read)
            assert facts(ours, kind, read) == {n: pytest.approx(v, **tolerance) for n, v in expected.items()}
        extents = collision_extents(theirs)
        assert collision_extents(ours) == {n: pytest.approx(e, abs=0.001) for n, e in extents.items()}
        for name in MOVABLE:
            turn = abs(ours.data.body(f"{name}_main").xquat @ theirs.data.body(f"{name}_main").xquat)
            assert np.degrees(2 * np.arccos(min(1.0, turn))) < 6


def facts(simulator: Simulator, kind: str, read: Callable) -> dict[str, tuple[float, ...]]:
    model = simulator.model
    views = [getattr(model, kind)(i) for i in range(getattr(model, {"joint": "njnt"}.get(kind, f"n{kind}")))]
    return {view.name: tuple(float(x) for x in read(view)) for view in views}


def collision_extents(simulator: Simulator) -> dict[str, np.ndarray]:
    """Return per body the bounding box (6,) of its colliding boxes, in the body's frame, metres."""
    model = simulator.model
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    points: dict[str, list[np.ndarray]] = {}
    for i in range(model.ngeom):
        geom = model.geom(i)
        if geom.contype[0] and geom.type[0] == 6:  # mjGEOM_BOX
            turned = (corners * geom.size) @ quat_matrix(geom.quat).T
            points.setdefault(model.body(geom.bodyid[0]).name, []).append(turned + geom.pos)
    joined = {name: np.concatenate(p) for name, p in points.items()}
    return {name: np.concatenate([p.min(axis=0), p.max(axis=0)]) for name, p in joined.items()}


def quat_matrix(quat: np.ndarray) -> np.ndarray:
    w, v = quat[0], quat[1:]
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross
