"""Write demonstrations in LIBERO's HDF5 layout, to the letter, so that readers nobody here wrote open them.

The pattern is LIBERO's scripts/create_dataset.py: contiguous, uncompressed data sets; images upside-down;
`states[t]` before `action[t]` and `obs[t]` after it; rewards and dones zero but for the last. Scripted demonstrations
have more: `expert_actions`, what the expert wanted to do in the state before step t, before noise; `obs/ee_wrench`,
force and torque at the wrist; and, if asked for, `obs/<camera>_depth_mm`.

The same episodes always give the same bytes.
"""

import importlib.util
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from pipeline.errors import DataError
from pipeline.files import write_atomic_with
from pipeline.libero.conventions import upright
from pipeline.libero.demos.layout import UPSIDE_DOWN, image_key
from pipeline.libero.depth import is_depth
from pipeline.libero.installation import find_assets, picture_identity
from pipeline.libero.proprio import axis_angle_from_quat
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import CAMERAS, Observation, Simulator
from pipeline.libero.suites import Task

TAG = "libero-v1"
ROBOSUITE_ENV_TYPE = 1  # robomimic.envs.env_base.EnvType.ROBOSUITE_TYPE
FirstTry = Literal["", "missed", "misplaced"]
_ARRAYS = ("joint_pos", "ee_pose", "gripper", "ee_wrench", "states", "actions", "expert_actions")


@dataclass(frozen=True)
class Origin:
    """Where a scripted episode comes from; with the settings, all that determines it."""

    init_row: int  # of .pruned_init; rows past its end are placements that the environment draws itself
    seed: int
    attempt: int  # 0 is the first
    displaced: float = 0.0  # metres within which what lies on the table was moved in x and y
    first_try: FirstTry = ""  # before the record begins, and what it failed at


@dataclass(frozen=True)
class Episode:
    """One demonstration of T steps, in this project's conventions (upright frames, quaternions).

    Attributes:
        images: camera -> (T, S, S, 3) uint8, upright; as joint_pos (T, 7), ee_pose (T, 7: metres, xyzw), gripper (T, 2)
            and ee_wrench (T, 6: N, N m), recorded after the action of the same row.
        depths: depth camera -> (T, S, S, 1) uint16 millimetres, likewise.
        states: (T, D) float64 flattened simulator states (time, qpos, qvel) before the action.
        actions: (T, 7) float64 in [-1, 1], as executed; gripper exactly -1 or +1.
        expert_actions: likewise, before noise.
        model_xml: the MuJoCo model. Fixture poses are in it and not in the states.
        env_name: LIBERO's class, such as Libero_Tabletop_Manipulation.
    """

    images: dict[str, np.ndarray]
    joint_pos: np.ndarray
    ee_pose: np.ndarray
    gripper: np.ndarray
    ee_wrench: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    expert_actions: np.ndarray
    model_xml: str
    env_name: str
    origin: Origin
    depths: dict[str, np.ndarray] = field(default_factory=dict)


def save_part(path: Path, episode: Episode) -> None:
    """Keep one finished episode, so that a run that is killed need not make it again. Atomic."""
    arrays = {name: getattr(episode, name) for name in _ARRAYS}
    for kind in ("images", "depths"):
        arrays |= {f"{kind}/{camera}": frames for camera, frames in getattr(episode, kind).items()}
    meta = {"model_xml": episode.model_xml, "env_name": episode.env_name, "origin": asdict(episode.origin)}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, meta=np.array(json.dumps(meta)), **arrays)

    write_atomic_with(path, write)


def load_part(path: Path) -> Episode:
    """Read what `save_part` wrote."""
    with np.load(path, allow_pickle=False) as part:
        meta = json.loads(str(part["meta"]))
        frames = {
            kind: {n.removeprefix(f"{kind}/"): part[n] for n in part.files if n.startswith(f"{kind}/")}
            for kind in ("images", "depths")
        }
        return Episode(
            images=frames["images"],
            depths=frames["depths"],
            **{name: part[name] for name in _ARRAYS},
            model_xml=meta["model_xml"],
            env_name=meta["env_name"],
            origin=Origin(**meta["origin"]),
        )


def write_demos(path: Path, task: Task, episodes: Iterable[Episode], sim: Sim) -> int:
    """Write one task's file; return the number of demos. Takes one episode at a time into memory. Atomic.

    Args:
        path: `<root>/<suite>/<task name>_demo.hdf5`.
        episodes: become demo_0, demo_1... in this order.
        sim: what they were recorded with; goes into the attribute env_args.

    Raises:
        DataError: there are no episodes, or their arrays have different lengths.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = total = 0
    env_name = ""
    # No time stamps and one library version's format: the same episodes give the same bytes.
    with h5py.File(partial, "w", libver=("earliest", "v110")) as file:
        data = file.create_group("data")
        for episode in episodes:
            total += _write_demo(data.create_group(f"demo_{count}"), episode)
            count += 1
            env_name = episode.env_name
        data.attrs.update(_file_attributes(task, sim, env_name))
        data.attrs["num_demos"] = count
        data.attrs["total"] = total
    if not count:
        partial.unlink()
        raise DataError(f"{path}: no demonstrations to write")
    partial.replace(path)
    return count


def _write_demo(group: Any, episode: Episode) -> int:
    length = len(episode.actions)
    ee_states = np.concatenate(
        [episode.ee_pose[:, :3].astype(np.float64), axis_angle_from_quat(episode.ee_pose[:, 3:])], axis=1
    )
    gripper = episode.gripper.astype(np.float64)
    last = np.zeros(length, np.uint8)
    last[-1] = 1
    obs = {
        "gripper_states": gripper,
        "joint_states": episode.joint_pos.astype(np.float64),
        "ee_states": ee_states,
        "ee_pos": ee_states[:, :3],
        "ee_ori": ee_states[:, 3:],
        "ee_wrench": episode.ee_wrench.astype(np.float64),
    }
    obs |= {image_key(camera): upright(frames) for camera, frames in (episode.images | episode.depths).items()}
    arrays = {f"obs/{name}": value for name, value in obs.items()}
    arrays |= {
        "actions": episode.actions.astype(np.float64),
        "states": episode.states.astype(np.float64),
        # env.get_robot_state_vector: fingers, end-effector position, quaternion (xyzw).
        "robot_states": np.concatenate([gripper, episode.ee_pose.astype(np.float64)], axis=1),
        "rewards": last,
        "dones": last,
        "expert_actions": episode.expert_actions.astype(np.float64),
    }
    for name, value in arrays.items():
        if len(value) != length:
            raise DataError(f"{group.name}/{name} has {len(value)} rows, but there are {length} actions")
        group.create_dataset(name, data=value)
    group.attrs["num_samples"] = length
    group.attrs["model_file"] = episode.model_xml
    group.attrs["init_state"] = episode.states[0]
    group.attrs["origin"] = json.dumps(asdict(episode.origin))
    return length


def _file_attributes(task: Task, sim: Sim, env_name: str) -> dict[str, Any]:
    problem = problem_info(task)
    # As seen from the root of LIBERO's own checkout: no machine's path.
    bddl = f"libero/libero/bddl_files/{task.suite}/{task.bddl_file.name}"
    env_kwargs = {
        "robots": ["Panda"],
        "controller_configs": _osc_pose(),
        "env_configuration": "default",
        "gripper_types": "default",
        "bddl_file_name": bddl,
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "ignore_done": True,
        "use_camera_obs": True,
        "camera_depths": False,
        "camera_names": list(CAMERAS.values()),
        "camera_heights": sim.image_size,
        "camera_widths": sim.image_size,
        "camera_segmentations": None,
        "reward_shaping": True,
        "control_freq": 20,
    }
    env_args = {
        "type": ROBOSUITE_ENV_TYPE,
        "env_name": env_name,
        "problem_name": problem["problem_name"],
        "bddl_file": bddl,
        "env_kwargs": env_kwargs,
    }
    others = {"assets_version": find_assets(sim).version, "settle_steps": sim.settle_steps, "seed": sim.seed}
    return {
        "env_name": env_name,
        "problem_info": json.dumps(problem),
        "env_args": json.dumps(env_args),
        "bddl_file_name": bddl,
        "bddl_file_content": task.bddl_file.read_text(),
        "macros_image_convention": UPSIDE_DOWN,
        "tag": TAG,
        "sim": json.dumps(picture_identity(sim) | others),
    }


def problem_info(task: Task) -> dict[str, str]:
    """Return what LIBERO's `get_problem_info` reads from the task's BDDL file. All in lower case, as its parser has it.

    `language_instruction` is the BDDL text; the instruction that evaluations use is `task.language`.

    Raises:
        DataError: the file does not define a problem.
    """
    text = task.bddl_file.read_text().lower()
    problem = re.search(r"\(define\s+\(problem\s+([^\s()]+)\)", text)
    language = re.search(r"\(:language\s+([^()]*)\)", text)
    if not problem or not language:
        raise DataError(f"{task.bddl_file}: no (problem ...) with a (:language ...) in it. Run: make setup")
    return {
        "problem_name": problem[1],
        "domain_name": "robosuite",
        "language_instruction": " ".join(language[1].split()),
    }


def portable_model(xml: str, assets: Path, robosuite_root: Path) -> str:
    """Return a MuJoCo model with file names below `assets` and `robosuite_root` made relative to the two packages.

    LIBERO's `postprocess_model_xml` finds robosuite's files again by the last path component "robosuite".
    """
    return xml.replace(f"{robosuite_root}/", "robosuite/").replace(f"{assets}/", "libero/libero/assets/")


def _osc_pose() -> dict[str, Any]:
    """robosuite's settings of the controller that LIBERO uses, read without importing robosuite."""
    return json.loads((_package("robosuite") / "controllers" / "config" / "osc_pose.json").read_text())


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"{name} is not installed. Run: make setup")
    return Path(spec.origin).parent


class Recorder:
    """Collects an episode while a Simulator is stepped: `before(...)`, `sim.step(...)`, `after()`, each step."""

    def __init__(self, sim: Simulator) -> None:
        self._sim = sim
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._expert_actions: list[np.ndarray] = []
        self._observations: list[Observation] = []

    def before(self, action: np.ndarray, expert_action: np.ndarray) -> None:
        """Note the state now and the action (7,) about to be executed, with and without noise."""
        self._states.append(self._sim.state())
        self._actions.append(np.array(action, np.float64))
        self._expert_actions.append(np.array(expert_action, np.float64))

    def after(self) -> None:
        """Look, after the step."""
        self._observations.append(self._sim.observe())

    def episode(self, origin: Origin) -> Episode:
        """Return what was collected."""
        observed = self._observations
        assets = Path(self._sim.env.custom_asset_dir)
        return Episode(
            images={c: np.stack([o.images[c] for o in observed]) for c in self._sim.cameras if not is_depth(c)},
            depths={c: np.stack([o.depths[c] for o in observed]) for c in self._sim.cameras if is_depth(c)},
            joint_pos=np.stack([o.joint_pos for o in observed]),
            ee_pose=np.stack([o.ee_pose for o in observed]),
            gripper=np.stack([o.gripper for o in observed]),
            ee_wrench=np.stack([o.ee_wrench for o in observed]),
            states=np.stack(self._states),
            actions=np.stack(self._actions),
            expert_actions=np.stack(self._expert_actions),
            model_xml=portable_model(self._sim.model_xml(), assets, _package("robosuite")),
            env_name=type(self._sim.env).__name__,
            origin=origin,
        )
