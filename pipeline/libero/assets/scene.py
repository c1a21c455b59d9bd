"""The room of libero_spatial: table, floor, walls, two lights and the fixed cameras, with LIBERO's numbers.

hf-libero's table arena finds these names, sets the table's size and height, and replaces the files of `texplane` and
`tex-wall` by those of its styles: "light-gray" and "light-gray-plaster" in libero_spatial.
"""

from pipeline.libero.assets.mjcf import Element, Files, element, text
from pipeline.libero.assets.textures import floor_planks, light_wood, plaster, png

TABLE_TEXTURE, FLOOR_TEXTURE, WALL_TEXTURE = "martin_novak_wood_table", "light-gray-floor-tile", "light-gray-plaster"

WALLS = (  # name, position, quaternion, half lengths
    ("leftcorner", "-1.25 2.25 1.5", "0.6532815 0.6532815 0.2705981 0.2705981", "1.06 1.5 0.01"),
    ("rightcorner", "-1.25 -2.25 1.5", "0.6532815 0.6532815 -0.2705981 -0.2705981", "1.06 1.5 0.01"),
    ("left", "1.25 3 1.5", "0.7071 0.7071 0 0", "1.75 1.5 0.01"),
    ("right", "1.25 -3 1.5", "0.7071 -0.7071 0 0", "1.75 1.5 0.01"),
    ("rear", "-2 0 1.5", "0.5 0.5 0.5 0.5", "1.5 1.5 0.01"),
    ("front", "3 0 1.5", "0.5 0.5 -0.5 -0.5", "3 1.5 0.01"),
)
CAMERAS = (  # name, position, quaternion
    ("frontview", "1.0 0 1.45", "0.56 0.43 0.43 0.56"),
    ("birdview", "-0.2 0 3.0", "0.7071 0 0 0.7071"),
    ("agentview", "0.5 0 1.35", "0.653 0.271 0.271 0.653"),
    ("sideview", "-0.0565177 1.2761224 1.4879572", "0.0099051 0.0068780 0.5912228 0.8064181"),
)
UNSOLID = {"contype": "0", "conaffinity": "0", "group": "1"}


def files() -> Files:
    """Return the scene and the textures of the room."""
    root = element("mujoco", [element("asset", _materials()), element("worldbody", _world())], model="table_arena")
    return {
        "scenes/libero_tabletop_base_style.xml": text(root),
        f"textures/{TABLE_TEXTURE}.png": png(light_wood()),
        f"textures/{FLOOR_TEXTURE}.png": png(floor_planks()),
        f"textures/{WALL_TEXTURE}.png": png(plaster()),
    }


def _materials() -> list[Element]:
    def image(name: str, file: str, kind: str) -> Element:
        return element("texture", name=name, file=f"../textures/{file}.png", type=kind)

    def material(name: str, texture: str, **attributes: str) -> Element:
        return element("material", name=name, texture=texture, **attributes)

    matt = {"reflectance": "0.0", "shininess": "0.0"}
    tiled = {"texrepeat": "3 3", "texuniform": "true"}
    return [
        element(
            "texture", builtin="gradient", type="skybox", width="64", height="64", rgb1=".9 .9 1.", rgb2=".2 .3 .4"
        ),
        image("texplane", FLOOR_TEXTURE, "2d"),
        material("floorplane", "texplane", specular="0.0", **matt, **tiled),
        image("tex-table", TABLE_TEXTURE, "cube"),
        material("table_texture", "tex-table", specular="0.2", **matt),
        image("tex-table-legs", TABLE_TEXTURE, "cube"),
        material("table_legs", "tex-table-legs", reflectance="0.8", shininess="0.8"),
        image("tex-wall", WALL_TEXTURE, "2d"),
        material("walls_mat", "tex-wall", reflectance="0.0", shininess="0.1", specular="0.8", **tiled),
    ]


def _world() -> list[Element]:
    floor = element("geom", name="floor", type="plane", size="3 3 .125", material="floorplane", condim="3", group="1")
    walls = [
        element("geom", name=f"wall_{n}_visual", type="box", pos=p, quat=q, size=s, material="walls_mat", **UNSOLID)
        for n, p, q, s in WALLS
    ]
    cameras = [element("camera", name=n, mode="fixed", pos=p, quat=q) for n, p, q in CAMERAS]
    lights = [
        element(
            "light",
            name=name,
            pos=pos,
            dir="0 -.15 -1",
            diffuse=".8 .8 .8",
            specular="0.3 0.3 0.3",
            directional="false",
            castshadow="false",
        )
        for name, pos in (("light1", "1 1 4"), ("light2", "-3 -3 4"))
    ]
    return [floor, *walls, _table(), *lights, *cameras]


def _table() -> Element:
    """The arena class sets sizes and positions of all of these."""
    half = "0.4 0.4 0.4"
    solid = element("geom", name="table_collision", type="box", size=half, friction="1 0.005 0.0001", group="0")
    drawn = element("geom", name="table_visual", type="box", size=half, material="table_texture", **UNSOLID)
    top = element("site", name="table_top", pos="0 0 0.4", size="0.001 0.001 0.001", rgba="0 0 0 0")
    legs = [
        element("geom", name=f"table_leg{k}_visual", type="cylinder", size="0.05 0.1", material="table_legs", **UNSOLID)
        for k in (1, 2, 3, 4)
    ]
    for geom in (solid, drawn, *legs):
        geom.set("pos", "0 0 0")
    return element("body", [solid, drawn, top, *legs], name="table", pos="0 0 0.4")
