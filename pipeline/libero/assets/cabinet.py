"""The wooden cabinet: a carcass and three drawers on slides, with LIBERO's sizes, joints and sites."""

from dataclasses import dataclass

import numpy as np

from pipeline.libero.assets.meshes import Mesh, Point, box, joined, revolve
from pipeline.libero.assets.mjcf import Element, Files, Visual, bounding_sites, collision_box, element, numbers, text
from pipeline.libero.assets.textures import brushed_metal, dark_wood, png

FOLDER = "articulated_objects"
NAME = "wooden_cabinet"
ALONG_X = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # turns the z axis to x
ALONG_Y = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # turns the z axis to y


@dataclass(frozen=True)
class Drawer:
    """One drawer; heights in metres: middle of its walls, its floor, its handle, its site."""

    name: str
    walls: float
    floor: float
    handle: float
    region: float


DRAWERS = (
    Drawer("top", 0.18358, 0.15514, 0.18393, 0.18563),
    Drawer("middle", 0.11387, 0.08543, 0.11041, 0.11690),
    Drawer("bottom", 0.04525, 0.01682, 0.04114, 0.04701),
)


def files() -> Files:
    """Return the files of the cabinet."""
    carcass = Visual("wooden_cabinet_base", _carcass_mesh())
    bodies, visuals = [], [carcass]
    for drawer in DRAWERS:
        front = Visual(f"wooden_cabinet_{drawer.name}", _drawer_mesh(drawer))
        handle = Visual(f"wooden_cabinet_{drawer.name}_handle", _handle_mesh(drawer.handle))
        visuals += [front, handle]
        bodies.append(_drawer_body(drawer, [front.geom(), handle.geom()]))
    base = element("body", [_site("top_side", (0.00354, 0.01567, 0.22152), (0.12534, 0.09438, 0.00147))], name="base")
    base.extend([carcass.geom(), *_carcass_collision(), *bodies])
    assets: list[Element] = []
    made: Files = {}
    for visual in visuals:
        mesh = f"{NAME}/{visual.name}/visual/{visual.name}_vis.obj"
        assets += visual.assets(mesh, f"{NAME}/{'metal' if 'handle' in visual.name else 'dark_fine_wood'}.png")
        made[f"{FOLDER}/{mesh}"] = visual.mesh.obj()
    root = element("mujoco", [element("asset", assets), fixture(base)], model=NAME)
    made[f"{FOLDER}/{NAME}.xml"] = text(root)
    made[f"{FOLDER}/{NAME}/dark_fine_wood.png"] = png(dark_wood())
    made[f"{FOLDER}/{NAME}/metal.png"] = png(brushed_metal())
    return made


def fixture(base: Element) -> Element:
    """Return the world body of a piece of furniture around its base body."""
    return element(
        "worldbody",
        [element("body", [element("body", [base], name="object"), *bounding_sites(0.05, -0.045, 0.045, 0.045)])],
    )


def _site(name: str, pos: Point, half: Point) -> Element:
    """A region of the BDDL files. LIBERO's are turned so that their local x is up; `half` is in the body's axes."""
    flat = name == "top_side"
    size = half if flat else (half[2], half[1], half[0])
    quat = "1 0 0 0" if flat else "0.70711 0 0.70711 0"
    rgba = "0.8 0.8 0.8 0"
    return element("site", name=name, type="box", pos=numbers(pos), size=numbers(size), quat=quat, group="0", rgba=rgba)


def _drawer_body(drawer: Drawer, drawn: list[Element]) -> Element:
    z = drawer.walls
    walls = [
        collision_box((0.00334, -0.07524, z - 0.00049), (0.10934, 0.00271, 0.03427)),
        collision_box((0.00334, -0.06839, z), (0.10679, 0.00356, 0.03214)),
        collision_box((0.00334, 0.09077, z), (0.10679, 0.00356, 0.03214)),
        collision_box((-0.10191, 0.01105, z), (0.00241, 0.08148, 0.03165)),
        collision_box((0.10894, 0.01105, z), (0.00241, 0.08148, 0.03133)),
        collision_box((0.00348, 0.01048, drawer.floor), (0.10696, 0.08095, 0.00401)),
        collision_box((-0.00278, -0.10161, drawer.handle), (0.04445, 0.00770, 0.00817)),
        collision_box((0.02916, -0.08348, drawer.handle), (0.00507, 0.01057, 0.00552)),
        collision_box((-0.03560, -0.08348, drawer.handle), (0.00507, 0.01057, 0.00560)),
    ]
    slide = element(
        "joint",
        name=f"{drawer.name}_level",
        type="slide",
        pos="0 0 0",
        axis="0 1 0",
        limited="true",
        range="-0.16 0.01",
        damping="50",
    )
    region = _site(f"{drawer.name}_region", (0.00328, 0.01128, drawer.region), (0.10224, 0.07561, 0.02993))
    inertia = element("inertial", pos="0 0 0", mass="3", diaginertia="1 1 1")
    return element("body", [inertia, slide, region, *drawn, *walls], name=f"cabinet_{drawer.name}")


def _carcass_collision() -> list[Element]:
    boxes: tuple[tuple[Point, Point], ...] = (
        ((0.00397, 0.10954, 0.11350), (0.11106, 0.00193, 0.10453)),
        ((0.00405, 0.01635, 0.00686), (0.12277, 0.08960, 0.00199)),
        ((-0.11216, 0.01625, 0.11426), (0.00517, 0.09542, 0.10584)),
        ((0.11898, 0.01625, 0.11426), (0.00517, 0.09542, 0.10584)),
        ((0.00211, 0.10938, 0.11426), (0.11912, 0.00231, 0.10584)),
        ((0.00376, 0.01868, 0.14935), (0.11168, 0.08935, 0.00085)),
        ((0.00408, 0.01868, 0.00933), (0.11168, 0.08935, 0.00085)),
        ((0.00392, 0.01868, 0.07928), (0.11168, 0.08935, 0.00085)),
        ((0.00394, 0.01577, 0.22157), (0.12729, 0.09409, 0.00142)),
    )
    return [collision_box(pos, half) for pos, half in boxes]


def _carcass_mesh() -> Mesh:
    """Overhanging top and plinth, two sides, back, and the two shelves between the drawers."""
    return joined(
        box((-0.1247, -0.0788, 0.2172), (0.1318, 0.1115, 0.2216)),
        box((-0.1189, -0.0732, 0.0046), (0.1267, 0.1062, 0.0088)),
        box((-0.1166, -0.0786, 0.0088), (-0.1078, 0.1115, 0.2172)),
        box((0.1148, -0.0786, 0.0088), (0.1241, 0.1115, 0.2172)),
        box((-0.1078, 0.1076, 0.0088), (0.1148, 0.1113, 0.2172)),
        box((-0.1078, -0.0700, 0.1486), (0.1148, 0.1076, 0.1500)),
        box((-0.1078, -0.0700, 0.0788), (0.1148, 0.1076, 0.0802)),
    )


def _drawer_mesh(drawer: Drawer) -> Mesh:
    low, high = drawer.floor - 0.0060, drawer.walls + 0.0331
    return joined(
        box((-0.1072, -0.0778, low), (0.1143, -0.0646, high + 0.0010)),
        box((-0.1045, 0.0888, low), (0.1120, 0.0950, high)),
        box((-0.1045, -0.0646, low), (-0.1004, 0.0888, high)),
        box((0.1078, -0.0646, low), (0.1120, 0.0888, high)),
        box((-0.1004, -0.0646, low), (0.1078, 0.0888, drawer.floor + 0.0032)),
    )


def _handle_mesh(height: float) -> Mesh:
    bar = revolve(((0, -0.0444), (0.0082, -0.0444), (0.0082, 0.0444), (0, 0.0444)), 10)
    post = revolve(((0, -0.0150), (0.0053, -0.0150), (0.0053, 0.0150), (0, 0.0150)), 8)
    return joined(
        bar.turned(ALONG_X).moved((-0.0026, -0.1019, height)),
        post.turned(ALONG_Y).moved((0.0292, -0.0880, height)),
        post.turned(ALONG_Y).moved((-0.0356, -0.0880, height)),
    )
