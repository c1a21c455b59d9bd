"""Train one of LeRobot's policies for a while, and keep it.

Runs in the peers' environment; of this project it knows the server that the policy will have.

Other than LeRobot's defaults are: a chunk of 16 actions; one observation, for Diffusion Policy too; no pretrained
backbone (nothing of ours is pretrained either); frames stored as images, which are faster to read than their videos;
the learning rate's schedule ends with the time that is given; DDIM with 10 steps where the error is measured and where
it acts.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import dataset_to_policy_features
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from tqdm import tqdm

from examples.lerobot_server import DEVICE, STATE, chunk

FPS = 20
AXES = ["height", "width", "channel"]
LOOKS = 6  # how often the error is measured


def main() -> None:
    """Convert if need be, train, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", choices=("act", "diffusion"))
    parser.add_argument("--data", type=Path, required=True, help="episodes as arrays, and index.json")
    parser.add_argument("--dataset", type=Path, required=True, help="the LeRobotDataset, made if it is not there")
    parser.add_argument("--budget", type=float, required=True, help="seconds of training")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="figures; the policy goes to a directory of this name")
    args = parser.parse_args()
    torch.manual_seed(0)
    index = json.loads((args.data / "index.json").read_text())
    started = time.monotonic()
    if not (args.dataset / "meta" / "info.json").exists():
        convert(args.data, index, args.dataset)
    converting = time.monotonic() - started
    result = train(args.policy, args.dataset, index, args.batch, args.budget, args.out.with_suffix(""))
    args.out.write_text(json.dumps({**result, "seconds_of_conversion": round(converting, 1)}))


def convert(data: Path, index: dict, target: Path) -> None:
    """Write the episodes as a LeRobotDataset."""
    first = np.load(data / "0.npz")
    features = {image_key(c): {"dtype": "image", "shape": first[c].shape[1:], "names": AXES} for c in index["cameras"]}
    for key, name in ((STATE, "state"), ("action", "action")):
        width = first[name].shape[1]
        features[key] = {"dtype": "float32", "shape": (width,), "names": [f"{name}_{i}" for i in range(width)]}
    dataset = LeRobotDataset.create("local/libero", fps=FPS, features=features, root=target, use_videos=False)
    for number, episode in enumerate(tqdm(index["episodes"], desc="converting", unit="episode")):
        arrays = dict(np.load(data / f"{number}.npz"))
        for row in range(episode["rows"]):
            frame = {image_key(c): arrays[c][row] for c in index["cameras"]}
            state = {STATE: arrays["state"][row], "action": arrays["action"][row]}
            dataset.add_frame({**frame, **state, "task": episode["task"]})
        dataset.save_episode()
    dataset.finalize()


def config(policy: str, horizon: int, features: dict) -> object:
    """Return the policy's configuration: LeRobot's defaults but for what the module's docstring names."""
    chunk = {
        "act": {"chunk_size": horizon, "n_action_steps": horizon},
        "diffusion": {
            "n_obs_steps": 1,
            "horizon": horizon,
            "n_action_steps": horizon,
            "drop_n_last_frames": 0,
            "noise_scheduler_type": "DDIM",
            "num_inference_steps": 10,
        },
    }[policy]
    inputs = {key: f for key, f in features.items() if f.type is not FeatureType.ACTION}
    outputs = {key: f for key, f in features.items() if f.type is FeatureType.ACTION}
    return make_policy_config(
        policy,
        input_features=inputs,
        output_features=outputs,
        pretrained_backbone_weights=None,
        device=DEVICE,
        push_to_hub=False,
        **chunk,
    )


def image_key(camera: str) -> str:
    """Return the name of a camera's pictures in a LeRobotDataset."""
    return f"observation.images.{camera}"


def train(policy: str, root: Path, index: dict, batch: int, budget: float, checkpoint: Path) -> dict:
    """Train for `budget` seconds, the measuring of errors not counted, and write the policy to `checkpoint`."""
    whole = LeRobotDataset("local/libero", root=root)
    cfg = config(policy, index["horizon"], dataset_to_policy_features(whole.meta.features))
    times = resolve_delta_timestamps(cfg, whole.meta)
    dataset = LeRobotDataset("local/libero", root=root, delta_timestamps=times)
    held = [number for number, episode in enumerate(index["episodes"]) if episode["held"]]
    starts = np.cumsum([0, *(episode["rows"] for episode in index["episodes"])])
    rows = [r for n in range(len(starts) - 1) if n not in held for r in range(starts[n], starts[n + 1])]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(dataset, rows), batch, shuffle=True, num_workers=2, prefetch_factor=2, drop_last=True
    )
    before, after = make_pre_post_processors(cfg, dataset_stats=whole.meta.stats)
    network = get_policy_class(policy)(cfg).to(DEVICE).train()
    preset = cfg.get_optimizer_preset()
    optimizer = preset.build(network.get_optim_params())
    batches = endless(loader)
    check = [dataset[i] for i in index["val_rows"]]
    batch_of_check = torch.utils.data.default_collate(check)

    def step() -> None:
        loss, _ = network.forward(before(next(batches)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    started = time.monotonic()
    for _ in range(3):
        step()
    per_step = (time.monotonic() - started) / 3
    schedule = cfg.get_scheduler_preset()
    planned = max(10, int(budget / per_step))
    if schedule is not None:
        schedule.num_warmup_steps = min(schedule.num_warmup_steps, planned // 10)
        schedule = schedule.build(optimizer, planned)
    curve, steps, seconds = [], 3, per_step * 3
    with tqdm(total=round(budget), desc=policy, unit="s") as bar:
        while seconds < budget:
            started = time.monotonic()
            step()
            if schedule is not None:
                schedule.step()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds += time.monotonic() - started
            steps += 1
            bar.update(min(round(seconds), bar.total) - bar.n)
            if seconds >= budget * (len(curve) + 1) / LOOKS and seconds < budget:
                curve.append([round(seconds, 1), round(error(network, before, after, batch_of_check), 5)])
    curve.append([round(seconds, 1), round(error(network, before, after, batch_of_check), 5)])
    for part in (network, before, after):
        part.save_pretrained(checkpoint)
    return {
        "batch": batch,
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": steps,
        "samples_per_s": round(steps * batch / seconds, 2),
        "curve": curve,
        "device": DEVICE,
        "torch": torch.__version__,
    }


def endless(loader: torch.utils.data.DataLoader):
    """Yield batches, epoch after epoch."""
    while True:
        yield from loader


def error(network: torch.nn.Module, before: object, after: object, batch: dict) -> float:
    """Return the mean absolute error of the chunks in the environment's units."""
    network.eval()
    found = chunk(network, before, after, batch)
    network.train()
    return float((found - batch["action"]).abs().mean())


if __name__ == "__main__":
    main()
