"""Policies that are exported in seconds: untrained, on a CLIP of two layers, with statistics unlike zero and one."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.encode.settings import GridParams
from pipeline.libero.installation import picture_identity
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Observation
from pipeline.policy import bundle
from pipeline.policy.bundle import PolicyBundle, PolicySpec
from pipeline.policy.network import Architecture, PolicyNetwork
from tests import base
from tests.encode import tiny

SIM = Sim(None, "fast", "auto", 64, 3, 0)
CAMERAS = ("agentview", "eye_in_hand")
PROPRIO = ("joint_pos", "ee_pose", "gripper")
GRID = GridParams(2, -1)
SEEN = "pick up the black bowl between the plate and the ramekin and place it on the plate"  # libero_spatial, task 0


def network(arch: Architecture) -> PolicyNetwork:
    """Return a policy all of whose weights and statistics matter."""
    torch.manual_seed(0)
    made = PolicyNetwork(arch).eval()
    with torch.no_grad():
        for weight in made.head.parameters():
            if not weight.any():  # the last layers of residual blocks begin as zero
                weight.normal_(std=0.05)
        for name, buffer in made.normaliser.named_buffers():
            if name.startswith("action") and not arch.standardise_actions:
                continue
            buffer.uniform_(0.3, 0.6) if name.endswith("std") else buffer.uniform_(-0.3, 0.3)
    return made


def encoder(grid: GridParams | None = None) -> ClipEncoder:
    """Return the small CLIP, after `tiny.register`."""
    return ClipEncoder(tiny.PARAMS, grid=grid)


def policy(
    clip: ClipEncoder, path: Path, grid: GridParams | None = None, tune: bool = False, **changes: Any
) -> PolicyBundle:
    """Save a bundle to `path` and read it again."""
    tokens = clip.tokens if grid else None
    sizes = {"image_dim": tokens[1] if tokens else clip.dim, "text_dim": clip.dim, "head_width": 16, "horizon": 4}
    grid_sizes = {"features": "grid", "patches": tokens[0]} if tokens else {}
    inputs = {"cameras": CAMERAS, "proprio": PROPRIO, "sampling_steps": 3}
    arch = base.architecture(**{**inputs, **sizes, **grid_sizes, **changes})
    tower = {name: x + 0.01 for name, x in clip.visual.state_dict().items()} if tune else None
    data = {"sim": picture_identity(SIM), "tasks": {"libero_spatial": [0]}}
    spec = PolicySpec(
        arch, clip.identity, "full" if tune else "none", asdict(grid) if grid else None, TRANSFORM_ID, data, {}
    )
    known = replace(spec, instructions=(SEEN,))
    bundle.save(path, network(arch), known, tower, torch.from_numpy(clip.text([SEEN])))
    return bundle.load(path)


def observation(seed: int = 0, side: int = 64) -> Observation:
    """Return a random one, but for the quaternion, which is a rotation."""
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 255, (side, side, 3), np.uint8) for camera in CAMERAS}
    joints, pose, gripper, wrench = (rng.normal(size=k).astype(np.float32) for k in (7, 7, 2, 6))
    pose[3:] *= np.sign(pose[3]) / np.linalg.norm(pose[3:])
    return Observation(joints, pose, gripper, wrench, images=images)


def named(obs: Observation) -> dict[str, np.ndarray]:
    """Return it as a policy's `act` takes it."""
    return {**obs.images, **{name: getattr(obs, name) for name in PROPRIO}}
