"""A policy for another robot, untrained: its names are LIBERO's and torch's in part, and mean something else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.policy import bundle
from pipeline.policy.bundle import PolicySpec
from pipeline.policy.normaliser import Moments
from tests import base
from tests.inference import exports

INSTRUCTION = "push the cube"
BOUNDS = ((-90.0, 90.0), (-1e3, -990.0), (0.0, 0.02), (0.0, 0.0), (-1.0, 1.0), (20.0, 45.0))
CAMERA = "agentview"
STATES = {"ee_pose": 3, "linear": 6, "val_0": 1}
KEYS = {
    "cameras": {CAMERA: "observation.images.front"},
    "state": {"ee_pose": "observation.tip", "linear": "observation.state", "val_0": "observation.grip"},
    "action": "action",
    "instruction": "task",
}


def policy(clip: ClipEncoder, path: Path, fps: float | None = 10.0) -> Path:
    """Save a bundle to `path`."""
    sizes = {"image_dim": clip.dim, "text_dim": clip.dim, "head_width": 16, "horizon": 4, "sampling_steps": 3}
    given = {"cameras": (CAMERA,), "proprio": tuple(STATES), "widths": tuple(STATES.values()), "bounds": BOUNDS}
    network = exports.network(base.architecture(**given, **sizes))
    low, high = torch.tensor(BOUNDS).T
    moments = Moments()
    moments.add(low + (high - low) * torch.rand(200, len(BOUNDS), generator=torch.Generator().manual_seed(1)))
    network.normaliser.action.fit(moments, 1e-6)
    data = {"sim": None, "own": {"keys": KEYS, "fps": fps, "frames": "upright"}, "tasks": {"mine": None}, "stores": {}}
    recipe = {"demonstrations": {"source": "own", "learnt": 9, "validation": 1, "steps": 900}}
    spec = PolicySpec(network.arch, clip.identity, "none", None, TRANSFORM_ID, data, {}, recipe)
    bundle.save(
        path, network, replace(spec, instructions=(INSTRUCTION,)), texts=torch.from_numpy(clip.text([INSTRUCTION]))
    )
    return path


def observation(seed: int = 0) -> dict[str, np.ndarray]:
    """Return what that robot may see: no part of its ee_pose is a quaternion."""
    rng = np.random.default_rng(seed)
    seen: dict[str, np.ndarray] = {CAMERA: rng.integers(0, 255, (48, 64, 3), np.uint8)}
    return seen | {name: (-40 * rng.random(size)).astype(np.float32) for name, size in STATES.items()}
