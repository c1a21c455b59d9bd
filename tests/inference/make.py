"""Untrained policies on a tiny CLIP, and observations for them. What they do is arbitrary, but of all inputs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.libero.installation import picture_identity
from pipeline.policy.bundle import PolicySpec, save
from pipeline.policy.network import PolicyNetwork
from pipeline.policy.normaliser import Moments
from tests import base
from tests.encode import tiny

BOWL = "pick up the black bowl and place it on the plate"
DRAWER = "open the top drawer"
CAMERAS = ("agentview", "eye_in_hand")
SIGNALS = {"joint_pos": 7, "ee_pose": 7, "gripper": 2}


def bundle(
    path: Path,
    params: EncoderParams = tiny.PARAMS,
    grid: GridParams | None = None,
    card: str | None = None,
    **changes: Any,
) -> Path:
    """Write the bundle of a policy that knows BOWL and DRAWER; `changes` are of its architecture."""
    encoder = ClipEncoder(params, grid=grid)
    values = {
        "cameras": CAMERAS,
        "proprio": tuple(SIGNALS),
        "patches": grid.size**2 if grid else None,
        "image_dim": encoder.tokens[1] if encoder.tokens else encoder.dim,
        "text_dim": encoder.dim,
        "head_width": 16,
        "horizon": 4,
        "sampling_steps": 3,
    }
    torch.manual_seed(0)
    network = PolicyNetwork(base.architecture(**{**values, **changes}))
    network.normaliser.action.fit(_moments(0.3))
    spec = PolicySpec(
        architecture=network.arch,
        encoder=encoder.identity,
        tune="none",
        grid=asdict(grid) if grid else None,
        transform=TRANSFORM_ID,
        data={"sim": picture_identity(tiny.SIM), "tasks": {"libero_spatial": [0, 3]}},
        provenance={"argv": ["train_flow"], "git": None, "versions": {}},
        recipe={"demonstrations": {"source": "scripted", "learnt": 9, "validation": 1, "steps": 900}},
        instructions=(BOWL, DRAWER),
    )
    save(path, network, spec, texts=torch.from_numpy(encoder.text([BOWL, DRAWER])), card=card)
    return path


def _moments(scale: float) -> Moments:
    moments = Moments()
    moments.add(torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * scale)
    return moments


def observation(seed: int = 0, size: tuple[int, int] = (24, 24)) -> dict[str, np.ndarray]:
    """Return what a robot may see: upright images of this height and width, and sound signals."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {camera: rng.integers(0, 255, (*size, 3), np.uint8) for camera in CAMERAS}
    quat = rng.normal(size=4)
    quat *= np.sign(quat[0]) / np.linalg.norm(quat)
    made["joint_pos"] = rng.normal(size=7).astype(np.float32)
    made["ee_pose"] = np.concatenate([rng.normal(size=3), quat]).astype(np.float32)
    made["gripper"] = np.array([0.02, -0.02], np.float32)
    return made


def stacked(observations: list[dict[str, np.ndarray]], axis: int = 0) -> dict[str, np.ndarray]:
    """Return observations as one batch, or, along axis 1, batches as a history."""
    return {name: np.stack([each[name] for each in observations], axis) for name in observations[0]}
