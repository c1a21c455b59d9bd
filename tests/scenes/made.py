"""A scene made by hand, its states, and a store of them with pictures that show nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.scenes import store
from pipeline.scenes.state import FIELDS, Contents, Part

CONTENTS = Contents(
    scene="made/0",
    suite="libero_spatial",
    tasks=(
        "pick up the black bowl next to the plate and place it on the plate",
        "pick up the black bowl between the plate and the ramekin and place it on the plate",
        "open the top drawer of the cabinet",
        "put the red mug on the left plate",
    ),
    involved=((0, 3), (0, 3), (4,), (3,)),
    kinds=("akita_black_bowl", "akita_black_bowl", "glazed_rim_porcelain_ramekin", "plate", "wooden_cabinet"),
    regions=((4, "top_region"),),
    parts=(Part("top", 4),),
)


def row(*changes: tuple[str, Any, Any]) -> dict[str, np.ndarray]:
    """Return one state: a bowl between plate and ramekin, another far behind, the hand empty and open above the plate.

    The camera looks along -x: what has a larger y is to the right.

    Args:
        changes: array, column and value of what is otherwise.
    """
    state = {name: np.zeros((1, *shape), dtype) for name, (shape, dtype) in FIELDS.items()}
    state["thing/present"][:, :5] = True
    state["thing/position"][:] = np.nan
    places = [[0.6, 0, 0.02], [0.3, 0, 0.02], [0.6, -0.2, 0.02], [0.6, 0.2, 0.02], [0.5, -0.5, 0.1]]
    state["thing/position"][0, :5] = places
    state["thing/half_extent"][0, :5] = [[0.06, 0.06, 0.02]] * 4 + [[0.1, 0.1, 0.1]]
    state["thing/support"][:] = state["thing/region"][:] = state["hand/holding"][:] = -1
    state["hand/position"][:] = [0.6, 0.2, 0.2]
    state["hand/gap"][:] = 0.08
    for name, column, value in changes:
        state[name][(0, *column) if isinstance(column, tuple) else (0, column)] = value
    return state


def write_store(path: Path, units: int, monkeypatch: Any, rows: int = 16) -> None:
    """Write a store of random states: bowls, ramekin and plate anywhere, and in the pictures a square for each.

    All but the last unit are for training, that one is held out.
    """
    monkeypatch.setattr("pipeline.scenes.store.PICTURES", rows)
    monkeypatch.setattr("pipeline.scenes.store.CHUNK_ROWS", rows)
    store.create(path, units, 128)
    for unit in range(units):
        rng = np.random.default_rng(unit)
        states = []
        for _ in range(rows):
            state = row()
            state["thing/position"][0, :4, :2] = rng.uniform([0.3, -0.4], [0.9, 0.4], (4, 2))
            state["lowdim/ee_pose"][0] = [*state["hand/position"][0], 0, 0, 0, 1]
            states.append(state)
        arrays = {name: np.concatenate([state[name] for state in states]) for name in FIELDS}
        for camera in ("agentview", "eye_in_hand"):
            arrays[f"label/{camera}"] = np.stack([_squares(place) for place in arrays["thing/position"]])
            shades = 50 * (1 + arrays[f"label/{camera}"].astype(np.uint8))
            arrays[f"image/{camera}"] = np.repeat(shades[..., None], 3, -1)
        arrays["split"] = np.full(rows, store.HELD_OUT if unit == units - 1 else store.TRAIN)
        store.write(path, unit, arrays)
    attributes = {"version": store.VERSION, "fingerprint": "made", "contents": {0: CONTENTS.to_json()}}
    (path / store.ATTRIBUTES).write_text(json.dumps(attributes))


def _squares(place: np.ndarray) -> np.ndarray:
    labels = np.full((128, 128), -1, np.int8)
    for i, (x, y) in enumerate(place[:4, :2]):
        down, right = int((x - 0.3) / 0.6 * 100), int((y + 0.4) / 0.8 * 100)
        labels[down : down + 20, right : right + 20] = i
    labels[100:, :30] = 4
    return labels
