"""What a policy takes and gives, in plain JSON values: shapes, types, units, frames and signs.

Units, frames and signs are LIBERO's, which whoever brings observations from elsewhere has to match; or, of a policy
that was trained on data of another robot, those of the data, which are not known here.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.libero.conventions import ACTION_NAMES, CONTROL_HZ
from pipeline.libero.depth import is_depth
from pipeline.policy.bundle import PolicySpec

CROP = "cropped at the centre to its shorter side, then resized as CLIP's own transform does it (bicubic, antialiased)"
WORLD = "LIBERO's world: x away from the robot's base, y to its left, z up"
SIGNALS: dict[str, dict[str, str]] = {
    "joint_pos": {
        "unit": "rad",
        "frame": "joints 1 to 7 of the Franka Panda, from the base on",
        "sign": "Franka's zero and direction of each joint",
    },
    "ee_pose": {
        "unit": "m (3), unit quaternion x, y, z, w (4)",
        "frame": f"{WORLD}; position of the point between the finger tips, rotation of robosuite's body right_hand",
        "sign": "q_x >= 0; a quaternion with q_x < 0 is negated, which is the same rotation",
    },
    "gripper": {
        "unit": "m",
        "frame": "positions of the two fingers along their axis",
        "sign": "the first is positive, the second negative; 0 is closed, 0.04 and -0.04 wide open",
    },
    "ee_wrench": {
        "unit": "N (3), N m (3)",
        "frame": "the hand's, at the wrist's force and torque sensor",
        "sign": "as robosuite's sensors give it",
    },
}
ACTIONS = {
    "unit": "of [-1, 1] a control step: 1.0 is 0.05 m (dx, dy, dz) and 0.5 rad (dax, day, daz: axis times angle)",
    "frame": f"{WORLD}; added to the hand's present pose",
    "sign": "gripper: -1 opens, +1 closes",
}


AS_IN_DATA = "as in the data that it was trained on"
UNKNOWN = dict.fromkeys(("unit", "frame", "sign"), AS_IN_DATA)


def own_data(spec: PolicySpec) -> dict[str, Any] | None:
    """Return the keys, fps and frames of the data of another robot that a policy learnt from; None for LIBERO's."""
    return spec.data.get("own")


def describe(spec: PolicySpec) -> dict[str, Any]:
    """Return what a policy takes and gives.

    Returns:
        inputs: name -> shape, dtype, unit, frame, sign, of one observation; of images also what is done to them; of
            another robot's also its key in the data.
        instruction: its type, and those that the policy learnt.
        history: how many observations it sees at a time, and how many control steps apart they are.
        outputs: "actions" -> shape, dtype, unit, frame, sign, names and range: of all components, or of each.
        control_hz, horizon, n_action_steps. control_hz is the data's fps for another robot, None if they tell none.
        own: `own_data`; not there for LIBERO's.
    """
    arch, own = spec.architecture, own_data(spec)
    inputs = {camera: _image(camera, spec) for camera in arch.cameras}
    inputs |= {name: _signal(name, spec) for name in arch.proprio}
    return {
        "inputs": inputs,
        "instruction": {"dtype": "str", "known": list(spec.instructions)},
        "history": {"n_obs_steps": arch.n_obs_steps, "control_steps_apart": arch.n_action_steps},
        "outputs": {
            "actions": {"shape": [arch.horizon, arch.action_dim], "dtype": "float32", **_actions(spec)},
        },
        "control_hz": CONTROL_HZ if own is None else own["fps"],
        "horizon": arch.horizon,
        "n_action_steps": arch.n_action_steps,
        **({} if own is None else {"own": dict(own)}),
    }


def action_ranges(actions: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return least and greatest value of each component, from the description of "actions"."""
    low_high = actions["range"]
    each = low_high if isinstance(low_high[0], list) else [low_high] * actions["shape"][-1]
    return [(low, high) for low, high in each]


def _signal(name: str, spec: PolicySpec) -> dict[str, Any]:
    own = own_data(spec)
    meaning = SIGNALS[name] if own is None else {**UNKNOWN, "key": own["keys"]["state"][name]}
    return {"shape": [spec.architecture.proprio_dims[name]], "dtype": "float32", **meaning}


def _actions(spec: PolicySpec) -> dict[str, Any]:
    if (own := own_data(spec)) is None:
        return {**ACTIONS, "names": list(ACTION_NAMES), "range": [-1.0, 1.0]}
    bounds = spec.architecture.bounds
    names, ranges = [str(i) for i in range(len(bounds))], [list(low_high) for low_high in bounds]
    return {**UNKNOWN, "names": names, "range": ranges, "key": own["keys"]["action"]}


def _image(camera: str, spec: PolicySpec) -> dict[str, Any]:
    described: dict[str, Any] = {
        "shape": ["H", "W", 3],
        "dtype": "uint8",
        "unit": "RGB, 0 to 255",
        "frame": "upright: the first row is the top",
        "sign": "not mirrored",
        "resized": CROP,
        "learnt_at": (spec.data.get("sim") or {}).get("image_size"),  # pixels a side, None if not known
    }
    if own := own_data(spec):
        described |= {"sign": AS_IN_DATA, "key": own["keys"]["cameras"][camera]}
    elif is_depth(camera):
        described |= {"shape": ["H", "W", 1], "dtype": "uint16", "unit": "mm, 0 where nothing was measured"}
    return described
