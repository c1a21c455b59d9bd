"""Writing MuJoCo XML in the shape that LIBERO's object classes read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from pipeline.libero.assets.meshes import Mesh, Number, Point

DENSITY = 100.0  # kg/m^3 of every collision geom: LIBERO's value
CONTACT = {"solimp": "0.998 0.998 0.001", "solref": "0.001 1", "friction": "0.95 0.3 0.1"}  # LIBERO's values
HIDDEN = "0.8 0.8 0.8 0.3"

Files = dict[str, bytes]
Element = ElementTree.Element


def numbers(values: Number | Sequence[Number] | np.ndarray) -> str:
    """Return numbers as an XML attribute, to seven digits."""
    return " ".join(f"{float(v):.7g}" for v in np.atleast_1d(np.asarray(values, float)))


def element(tag: str, children: Iterable[Element] = (), /, **attributes: str) -> Element:
    """Return an XML element."""
    made = Element(tag, attributes)
    made.extend(children)
    return made


def text(root: Element) -> bytes:
    """Return the XML text of a document."""
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


@dataclass(frozen=True)
class Visual:
    """A drawn mesh."""

    name: str
    mesh: Mesh

    def assets(self, mesh_file: str, texture_file: str) -> list[Element]:
        """Return the mesh, texture and material elements; files are relative to the XML."""
        return [
            element("mesh", file=mesh_file, name=f"{self.name}_vis"),
            element("texture", file=texture_file, name=f"tex-{self.name}", type="2d"),
            element("material", name=self.name, texture=f"tex-{self.name}"),
        ]

    def geom(self) -> Element:
        """Return the geom that draws it; group 1 neither collides nor weighs (robosuite's inertiagrouprange is 0)."""
        mesh = f"{self.name}_vis"
        return element("geom", type="mesh", mesh=mesh, material=self.name, contype="0", conaffinity="0", group="1")


def collision_box(pos: Point, half: Point, quat: np.ndarray | None = None) -> Element:
    """Return an invisible box that collides; `half` are half lengths in metres, `quat` is (w, x, y, z)."""
    extra = {} if quat is None else {"quat": numbers(quat)}
    return element(
        "geom",
        type="box",
        pos=numbers(pos),
        size=numbers(half),
        group="0",
        rgba=HIDDEN,
        density=numbers(DENSITY),
        **CONTACT,
        **extra,
    )


def collision_ring(
    azimuths_deg: Iterable[Number], radius: float, height: float, lean_deg: float, half: Point, twist_rad: float = 0.0
) -> list[Element]:
    """Return a wall of boxes around the z axis.

    Args:
        azimuths_deg: where the boxes stand.
        radius, height: of the boxes' centres, metres.
        lean_deg: outward lean of the wall from the vertical.
        half: half lengths (thickness, width around, length along the slope), metres.
        twist_rad: turn of each box about the line of its slope.
    """
    boxes = []
    for azimuth in np.radians(list(azimuths_deg)):
        pos = (radius * np.cos(azimuth), radius * np.sin(azimuth), height)
        quat = _times(_about(2, azimuth), _times(_about(1, np.radians(lean_deg)), _about(2, twist_rad)))
        boxes.append(collision_box(pos, half, quat))
    return boxes


def bounding_sites(size: float, bottom: float, top: float, radius: float) -> list[Element]:
    """Return the three sites by which robosuite knows an object's extent."""
    places = {"bottom_site": (0, 0, bottom), "top_site": (0, 0, top), "horizontal_radius_site": (radius, radius, 0)}
    return [
        element("site", name=name, pos=numbers(pos), size=numbers(size), rgba="0 0 0 0") for name, pos in places.items()
    ]


def movable(folder: str, visual: Visual, collision: list[Element], texture_file: str, png: bytes) -> Files:
    """Return the files of an object that can be picked up: <folder>/<name>.xml, its mesh and its texture `png`."""
    name = visual.name
    mesh_file = f"visual/{name}_vis.obj"
    root = element(
        "mujoco",
        [
            element("asset", visual.assets(mesh_file, texture_file)),
            element(
                "worldbody",
                [
                    element(
                        "body",
                        [
                            element("body", [visual.geom(), *collision], name="object"),
                            *bounding_sites(0.005, -0.06, 0.04, 0.025),
                        ],
                    )
                ],
            ),
        ],
        model=name,
    )
    return {
        f"{folder}/{name}.xml": text(root),
        f"{folder}/{mesh_file}": visual.mesh.obj(),
        f"{folder}/{texture_file}": png,
    }


def _about(axis: int, angle: float) -> np.ndarray:
    quat = np.zeros(4)
    quat[0], quat[1 + axis] = np.cos(angle / 2), np.sin(angle / 2)
    return quat


def _times(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    w, x, y, z = p
    return np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]) @ q
