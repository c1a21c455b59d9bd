"""The flat stove: a steel box with one ringed burner and a knob, with LIBERO's sizes, joint and sites."""

import numpy as np

from pipeline.libero.assets.cabinet import FOLDER, fixture
from pipeline.libero.assets.meshes import Mesh, joined, prism, revolve
from pipeline.libero.assets.mjcf import Element, Files, collision_box, element, numbers, text
from pipeline.libero.assets.textures import brushed_metal, png

NAME = "flat_stove"
STEEL = "stove_knob_metal"
BASE_HALF = (0.095, 0.095, 0.02)
BURNER = (
    (0.0, -0.0057), (0.0634, -0.0057), (0.0650, -0.0048), (0.0650, -0.0031), (0.0634, 0.0004), (0.0533, 0.0004),
    (0.0525, -0.0026), (0.0458, -0.0026), (0.0452, 0.0004), (0.0374, 0.0004), (0.0368, -0.0026), (0.0295, -0.0026),
    (0.0290, 0.0004), (0.0219, 0.0004), (0.0213, -0.0026), (0.0155, -0.0026), (0.0149, 0.0004), (0.0, 0.0004),
)  # fmt: skip
KNOB = ((0.0, 0.0), (0.0462, 0.0), (0.0462, 0.0120), (0.0438, 0.0155), (0.0, 0.0155))
KNOB_MIDDLE = (0.0013, 0.0046)
GRIP = ((-0.0420, 0.0155), (0.0490, 0.0155), (0.0490, 0.0480), (0.0450, 0.0538), (-0.0080, 0.0538), (-0.0380, 0.0290))


def files() -> Files:
    """Return the files of the stove."""
    burner_file = f"{NAME}/stove_burner/burnerplate.obj"
    knob_file = f"{NAME}/stove_knob_button/visual/stove_knob_button_vis.obj"
    assets = [
        element("texture", file=f"{NAME}/metal.png", name="tex-stove_metal", type="2d"),
        # the box's top mirrors the room, as LIBERO's does
        element("material", name=STEEL, texture="tex-stove_metal", reflectance="0.5", shininess="1.0"),
        element("material", name="burner", texture="tex-stove_metal", rgba="0.93 0.93 0.93 1"),
        element("mesh", file=burner_file, name="burnerplate"),
        element("mesh", file=knob_file, name="stove_knob_button_vis"),
    ]
    base = element("body", [_burner_body(), _knob_body()], name="base", pos="0 0 0")
    root = element("mujoco", [element("asset", assets), fixture(base)], model=NAME)
    return {
        f"{FOLDER}/{NAME}.xml": text(root),
        f"{FOLDER}/{NAME}/metal.png": png(brushed_metal()),
        f"{FOLDER}/{burner_file}": _flat_mapped(revolve(BURNER, 28)).obj(),
        f"{FOLDER}/{knob_file}": _knob_mesh().obj(),
    }


def _burner_body() -> Element:
    # LIBERO's drawn box collides too (it has no contype), and these three have MuJoCo's default contact parameters
    drawn = element("geom", name="base_vis", type="box", size=numbers(BASE_HALF), material=STEEL, group="1")
    solid = element("geom", name="base", type="box", size=numbers(BASE_HALF), group="0", material=STEEL)
    cover = element("geom", name="collision_burner", type="box", pos="0 0 0.025", size="0.095 0.095 0.0005")
    cover.attrib.update(group="0", rgba="0 0 0 0")
    plate = element("geom", name="burner", type="mesh", mesh="burnerplate", material="burner", pos="0 0 0.025")
    plate.attrib.update(group="1", contype="0", conaffinity="0")
    return element(
        "body",
        [
            _cook_region(),
            drawn,
            solid,
            cover,
            element("body", [plate], name="burner_plate"),
            # red-hot: shown by hf-libero while the knob is turned on
            element(
                "site", name="burner", type="cylinder", pos="0 0 0.022", size="0.0625 0.0005", rgba="0.9 0.05 0.05 1"
            ),
        ],
        name="burner",
        pos="0.15 0 0",
    )


def _cook_region() -> Element:
    size = "0.075 0.075 0.0025"  # position and quaternion are read from the XML by hf-libero: they may not be left out
    return element(
        "site", name="cook_region", type="box", pos="0 0 0", quat="1 0 0 0", size=size, group="0", rgba="0.8 0.8 0 0"
    )


def _knob_body() -> Element:
    drawn = element("geom", type="mesh", mesh="stove_knob_button_vis", rgba="0.1 0.1 0.1 1", group="1")
    drawn.attrib.update(contype="0", conaffinity="0")
    turn = element("joint", name="button", type="hinge", pos="0 0 0", axis="0 0 1", limited="true")
    turn.attrib.update(range="-0.005 2.1", damping="1")
    inertia = element("inertial", pos="0 0 0", mass="3", diaginertia="1 1 1")
    return element(
        "body", [inertia, turn, drawn, *_knob_collision()], name="button", pos="0 0 0", quat="0.7071068 0 0 0.7071068"
    )


def _knob_collision() -> list[Element]:
    """A square and three strips on each of its sides make the round base; four boxes make the grip."""
    x, y = KNOB_MIDDLE
    boxes = [collision_box((x, y, 0.00657), (0.03396, 0.03396, 0.00621))]
    for out, thick, wide in ((0.0372, 0.00296, 0.02939), (0.0418, 0.00211, 0.02497), (0.0453, 0.00211, 0.01416)):
        for sign in (-1, 1):
            boxes.append(collision_box((x + sign * out, y, 0.00657), (thick, wide, 0.00621)))
            boxes.append(collision_box((x, y + sign * out, 0.00657), (wide, thick, 0.00621)))
    boxes.append(collision_box((0.00139, 0.01737, 0.02570), (0.01214, 0.03454, 0.02432)))
    boxes.append(collision_box((0.00118, -0.02003, 0.02439), (0.01214, 0.00776, 0.02048)))
    boxes.append(collision_box((0.00115, -0.02496, 0.02505), (0.01214, 0.00776, 0.01739)))
    boxes.append(collision_box((0.00108, -0.03643, 0.01715), (0.01214, 0.00415, 0.01661)))
    return boxes


def _knob_mesh() -> Mesh:
    return joined(revolve(KNOB, 20).moved((-0.0007, 0.0032, 0)), prism(GRIP, -0.0125, 0.0120))


def _flat_mapped(mesh: Mesh) -> Mesh:
    """Lay the texture flat over the mesh from above, in its bright middle."""
    return Mesh(mesh.vertices, mesh.normals, 0.5 + 2 * np.asarray(mesh.vertices)[:, :2], mesh.faces)
