"""Made-up demonstrations for tests that need no simulator."""

import numpy as np

from pipeline.libero.demos.write import Episode, Origin
from pipeline.libero.proprio import ee_pose_from_quat
from pipeline.libero.settings import Sim

SIM = Sim(assets_path=None, render="fast", gl="auto", image_size=16, settle_steps=10, seed=0)


def make_episode(length: int, seed: int = 0, depth: bool = False, size: int = 16) -> Episode:
    """An episode of plausible random values; the image's top row is red, so that its orientation shows."""
    rng = np.random.default_rng(seed)
    quat = np.array([0.99, 0.05, -0.1, -0.03]) + 0.01 * rng.normal(size=(length, 4))
    images = {
        camera: rng.integers(0, 200, (length, size, size, 3), np.uint8) for camera in ("agentview", "eye_in_hand")
    }
    for frames in images.values():
        frames[:, 0] = (255, 0, 0)
    depths = {
        f"{camera}_depth": rng.integers(100, 3000, (length, size, size, 1), np.uint16) for camera in images if depth
    }
    actions = rng.uniform(-0.9, 0.9, (length, 7))
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1.0, 1.0)
    return Episode(
        images=images,
        joint_pos=rng.normal(size=(length, 7)).astype(np.float32),
        ee_pose=ee_pose_from_quat(rng.normal(size=(length, 3)), quat),
        gripper=rng.uniform(-0.04, 0.04, (length, 2)).astype(np.float32),
        ee_wrench=rng.normal(size=(length, 6)).astype(np.float32),
        states=rng.normal(size=(length, 92)),
        actions=actions,
        expert_actions=np.clip(actions * 0.5, -1, 1) * [1, 1, 1, 1, 1, 1, 2],
        model_xml="<mujoco/>",
        env_name="Libero_Tabletop_Manipulation",
        origin=Origin(init_row=seed, seed=7, attempt=0),
        depths=depths,
    )
