"""A CLIP small enough to build and run in milliseconds, and demonstrations to feed it."""

import json
from pathlib import Path

import numpy as np
import open_clip

from pipeline.config import EncoderParams, Sim
from pipeline.encode.proprio import ee_pose_from_quat
from pipeline.libero.demonstrations import demo_file
from pipeline.libero.recording import Episode, Origin, write_demos
from pipeline.libero.suites import Task

MODEL = "tiny-clip"
PARAMS = EncoderParams(MODEL, "seeded", 0, "fp32")
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SIM = Sim("embedded", None, "fast", "auto", 24, 10, 0)


def register(folder: Path) -> None:
    """Make open_clip know `tiny-clip` and `tiny-clip-quickgelu`, from files in `folder`."""
    for name, extra in ((MODEL, {}), (f"{MODEL}-quickgelu", {"quick_gelu": True})):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**CONFIG, **extra}))
        open_clip.add_model_config(path)


def episode(length: int, seed: int, size: int = 24) -> Episode:
    """Return an episode of noise: no two frames alike."""
    rng = np.random.default_rng(seed)
    signs = np.where(rng.random((length, 1)) < 0.5, -1.0, 1.0)
    return Episode(
        images={
            camera: rng.integers(0, 256, (length, size, size, 3), np.uint8) for camera in ("agentview", "eye_in_hand")
        },
        joint_pos=rng.normal(size=(length, 7)).astype(np.float32),
        ee_pose=ee_pose_from_quat(
            rng.normal(size=(length, 3)), np.array([1.0, 0.1, 0.0, 0.05]) + 0.01 * rng.normal(size=(length, 4))
        ),
        gripper=rng.random((length, 2)).astype(np.float32),
        ee_wrench=rng.random((length, 6)).astype(np.float32),
        states=rng.normal(size=(length, 92)),
        actions=np.concatenate([rng.uniform(-1, 1, (length, 6)), signs], 1),
        expert_actions=np.concatenate([rng.uniform(-1, 1, (length, 6)), signs], 1),
        model_xml="<mujoco/>",
        env_name="Libero_Tabletop_Manipulation",
        origin=Origin(0, 0, 0),
    )


def demonstrations(root: Path, task: Task, lengths: list[int]) -> None:
    """Write one demonstration file."""
    write_demos(demo_file(root, task), task, [episode(n, 100 * task.id + i) for i, n in enumerate(lengths)], SIM)
