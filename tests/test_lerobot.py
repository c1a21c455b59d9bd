"""A policy of LeRobot, served from LeRobot's own environment, acts in our evaluation as LeRobot has it."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.inference.openpi import STATE, to_openpi
from pipeline.libero.sim.simulator import Observation
from pipeline.libero.suites import Task
from pipeline.rollout.remote import plan_remote
from tests.encode import tiny
from tests.imports import ROOT
from tests.inference.make import observation

STEPS = 4
SIDE = """
import sys
import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

given = np.load(sys.argv[2])
size = given["image"].shape[1:3]
picture = PolicyFeature(FeatureType.VISUAL, (3, *size))
cfg = make_policy_config(
    "act",
    input_features={
        "observation.images.image": picture,
        "observation.images.image2": picture,
        "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
    },
    output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
    pretrained_backbone_weights=None,
    device="cpu",
    push_to_hub=False,
    dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1, n_decoder_layers=1, n_vae_encoder_layers=1,
    chunk_size=8,
    n_action_steps=4,
)
torch.manual_seed(3)
numbers = lambda width: {"mean": torch.zeros(width), "std": 2 * torch.ones(width)}
colours = {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2)}
stats = {"observation.state": numbers(8), "action": numbers(7)}
stats |= {f"observation.images.{name}": colours for name in ("image", "image2")}
before, after = make_pre_post_processors(cfg, dataset_stats=stats)
network = get_policy_class("act")(cfg).eval()
for part in (network, before, after):
    part.save_pretrained(sys.argv[1])
network.reset()
seen = {
    f"observation.images.{name}": torch.from_numpy(given[name]).permute(0, 3, 1, 2).float() / 255
    for name in ("image", "image2")
} | {"observation.state": torch.from_numpy(given["state"])}
np.save(sys.argv[3], np.concatenate([after(network.select_action(before(dict(seen)))).numpy() for _ in range(4)]))
"""


@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
def test_it_gets_what_lerobots_own_libero_gives_it(lerobot_python: Path, tmp_path: Path, task: Task) -> None:
    shown = observation(4, (64, 64))
    images = {name: shown.pop(name) for name in ("agentview", "eye_in_hand")}
    request = to_openpi(images, shown, task.language)
    np.savez(
        tmp_path / "given.npz",
        image=images["agentview"][None, :, ::-1],  # half a turn of what is upside-down
        image2=images["eye_in_hand"][None, :, ::-1],
        state=request[STATE][None].astype(np.float32),
    )
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    files = [str(tmp_path / name) for name in ("checkpoint", "given.npz", "expected.npy")]
    subprocess.run([lerobot_python, "-c", SIDE, *files], check=True, env=environ, timeout=300)
    command = [lerobot_python, ROOT / "examples/lerobot_server.py", files[0], "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        assert server.stdout is not None
        said = re.search(r"ws://\S+", next(line for line in server.stdout if "ws://" in line))
        assert said is not None
        make, identity = plan_remote(said[0], tiny.SIM, None, 60.0)
        assert identity["metadata"]["policy"] == "LeRobot act" and identity["n_action_steps"] == STEPS
        agent = make()
        agent.reset(task, 0)
        found = agent.act(Observation(**shown, ee_wrench=np.zeros(6, np.float32), images=images))
    finally:
        server.kill()
        server.wait()
    assert found.shape == (8, 7)
    np.testing.assert_allclose(found[:STEPS], np.load(files[2]), atol=1e-5)
