"""Side by side with LeRobot's ACT and Diffusion Policy: samples per second, time to the same error, and success.

    python -m benchmarks.peers [--budget 300] [--batch 8] [--episodes 10]          (or: make bench-peers)

All see the same demonstrations (data/demos, by params.yaml), the same proprioception and one observation, predict 16
actions, hold out the same episodes, and are measured on the same of their rows: the mean absolute error of the 16
actions in the environment's units. LeRobot's policies are those of their package with their defaults, trained from a
LeRobotDataset by their DataLoader, in an environment of their own (benchmarks/peers/requirements.txt); what differs
from the defaults stands in benchmarks/peers/lerobot_side.py. Ours is `stages.embed` and `stages.train_flow` as anyone
runs them, the embedding's time counted. Each is judged by `stages.eval_libero`: LeRobot's behind a server of its own
(examples/lerobot_server.py), which speaks openpi's protocol. One after the other, each alone. Writes
benchmarks/results/peers.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cache import open_store
from pipeline.config import load
from pipeline.libero.demos.read import read, scan
from pipeline.libero.suites import tasks
from pipeline.provenance import cpu_name, versions
from pipeline.train.data import FeatureSpec, load_stores, split_by_episode

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ("act", "diffusion")
VAL_ROWS = 64
N_ACTION_STEPS = {"act": None, "diffusion": 8}  # LeRobot's defaults, of a chunk; None: all


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of training for each of LeRobot's")
    parser.add_argument("--batch", type=int, default=8, help="batch of LeRobot's policies (their default: 8)")
    parser.add_argument("--episodes", type=int, default=10, help="of each task")
    parser.add_argument("--policies", nargs="+", choices=PEERS, default=PEERS, help="of LeRobot's")
    parser.add_argument("--work", type=Path, default=Path(".scratch/peers"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers.json"))
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = environment(work)
    load_before = round(os.getloadavg()[0], 1)
    ours = train_ours(work)
    data = export(work)
    sides = {name: train_peer(name, python, data, work, args.budget, args.batch) for name in args.policies}
    result = {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before": load_before},
        "versions": {name: versions()[name] for name in ("python", "torch")},
        "validation_rows": VAL_ROWS,
        "ours": ours,
        **sides,
        "compared": {name: compare(ours, side) for name, side in sides.items()},
    }
    write(args.out, result)  # of what took longest; evaluations follow
    ours["evaluation"] = judge(work, "ours", args.episodes, "--policy", work / "ours" / "runs" / "flow" / "policy")
    for name, side in sides.items():
        with served(python, work / name, name, json.loads((data / "index.json").read_text())) as address:
            side["evaluation"] = judge(work, name, args.episodes, "--agent", address)
        write(args.out, result)
    print(json.dumps(result, indent=1))


def write(out: Path, result: dict[str, Any]) -> None:
    """Write the figures."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


def environment(work: Path) -> Path:
    """Return the interpreter of the peers' environment, made if it is not there."""
    folder, uv = work / "env", str(Path(sys.executable).with_name("uv"))
    python, ready = folder / "bin" / "python", folder / ".ready"
    wanted = (HERE / "requirements.txt").read_text()
    if not ready.exists() or ready.read_text() != wanted:
        subprocess.run([uv, "venv", "-q", "--clear", "-p", sys.executable, str(folder)], check=True)
        subprocess.run(
            [uv, "pip", "install", "--python", str(python), "-r", str(HERE / "requirements.txt")], check=True
        )
        ready.write_text(wanted)
    return python


def train_ours(work: Path) -> dict[str, Any]:
    """Embed and train by params.yaml in a directory of its own; return rates and the curve of the error."""
    place = work / "ours"
    (place / "data").mkdir(parents=True, exist_ok=True)
    if not (place / "data" / "demos").exists():
        (place / "data" / "demos").symlink_to(ROOT / "data" / "demos")
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["train_flow"] |= {"metrics_rows": VAL_ROWS}
    (place / "params.yaml").write_text(yaml.safe_dump(tree))
    subprocess.run(["rm", "-rf", "data/embeddings", "runs", ".scratch"], cwd=place, check=True)
    seconds = {}
    for stage in ("embed", "train_flow"):
        started = time.monotonic()
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=place, env=environ, check=True)
        seconds[stage] = round(time.monotonic() - started, 1)
    report = json.loads((place / "runs" / "flow" / "train.json").read_text())
    epochs, wall = report["epochs"], report["wall_s"]
    rows = len(split(place)[0])
    sampled = [e for e in epochs if e.get("val_action_mae") is not None]
    return {
        "batch": tree["train_flow"]["batch_size"],
        "parameters": report["trainable_parameters"]["total"],
        "seconds_of_stages": seconds,
        "samples_per_s": round(len(epochs) * rows / wall, 1),
        "curve": [[round(wall * (e["epoch"] + 1) / len(epochs), 1), round(e["val_action_mae"], 5)] for e in sampled],
    }


def split(place: Path) -> tuple[Any, Any, Any]:
    """Return our table's training rows, validation rows and episodes."""
    params = load(str(place / "params.yaml"))
    (suite,) = params.data.suites
    store = open_store(place / "data" / "embeddings" / f"{suite}.zarr")
    cfg, policy = params.train_flow, params.policy
    table = load_stores([(suite, store, params.data.tasks[suite])], FeatureSpec.by(policy), cfg.action, "resident", 1)
    return *split_by_episode(table.episodes, cfg.val_fraction, cfg.seed), table.episodes


def export(work: Path) -> Path:
    """Write each demonstration as plain arrays, frames upright and paired with the action after them; return where."""
    place, out = work / "ours", work / "episodes"
    params = load(str(place / "params.yaml"))
    (suite,) = params.data.suites
    wanted = tasks(suite, params.data.tasks[suite])
    usable, _ = scan(ROOT / "data" / "demos", suite, wanted, params.policy.cameras)
    demos = {demo.source: demo for demo in usable}
    _, val_rows, episodes = split(place)
    held = set(val_rows.tolist())
    out.mkdir(exist_ok=True)
    index = []
    for number, episode in enumerate(episodes):
        demo = demos[episode.source]
        arrays = read(demo, params.policy.cameras)
        shift = params.embed.obs_shift
        n = demo.length - shift
        state = np.concatenate([arrays[name][:n] for name in params.policy.proprio], axis=1)
        frames = {camera: images[:n] for camera, images in arrays["images"].items()}
        action = arrays[params.train_flow.action][shift:]
        np.savez(out / f"{number}.npz", state=state, action=action, **frames)
        index.append({"rows": n, "task": demo.task.language, "held": episode.first in held})
    chosen = val_rows[np.linspace(0, len(val_rows) - 1, min(VAL_ROWS, len(val_rows))).round().astype(int)]
    policy = params.policy
    settings = {"cameras": list(policy.cameras), "state": list(policy.proprio), "horizon": policy.horizon}
    (out / "index.json").write_text(json.dumps({**settings, "episodes": index, "val_rows": chosen.tolist()}))
    return out


def train_peer(name: str, python: Path, data: Path, work: Path, budget: float, batch: int) -> dict[str, Any]:
    """Train one of LeRobot's policies in its environment; return what it measured."""
    out = work / f"{name}.json"
    options = ["--data", data, "--dataset", work / "lerobot", "--budget", budget, "--batch", batch, "--out", out]
    command = [python, HERE / "lerobot_side.py", name, *options]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf"), "PYTHONPATH": str(ROOT)}
    subprocess.run([str(part) for part in command], env={**os.environ, **offline}, check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@contextmanager
def served(python: Path, checkpoint: Path, name: str, index: dict[str, Any]) -> Iterator[str]:
    """Yield the address of a server of one of LeRobot's policies."""
    command = [str(python), str(ROOT / "examples" / "lerobot_server.py"), str(checkpoint), "--port", "0", "--upright"]
    command += ["--images", *(f"observation.images.{camera}={camera}" for camera in index["cameras"])]
    command += ["--state", *index["state"], "--steps", str(N_ACTION_STEPS[name] or index["horizon"])]
    offline = {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **offline})
    try:
        assert process.stdout is not None
        said = next((line for line in process.stdout if "ws://" in line), None)
        if said is None:
            raise RuntimeError(f"{' '.join(command)} ended with {process.wait()}")
        yield said.split()[-1]
    finally:
        process.kill()
        process.wait()


def judge(work: Path, name: str, episodes: int, *agent: str | Path) -> dict[str, Any]:
    """Evaluate a policy, by params.yaml but for its conditions; return what came of it."""
    out = work / "results" / name
    stage = [sys.executable, "-m", "stages.eval_libero", *map(str, agent), "--out", str(out)]
    settings = ["--set", f"eval_libero.episodes={episodes}", "--set", "eval_libero.conditions={}"]
    subprocess.run([*stage, *settings], cwd=ROOT, check=True)
    result = json.loads((out / "eval.json").read_text())
    steps = {"n_action_steps": result["protocol"]["agent"]["n_action_steps"]}
    return steps | {key: result[key] for key in ("successes", "n", "errors", "wilson_low", "wilson_high")}


def compare(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """Return how much faster ours takes in samples, and when each first had the better of the errors both reached."""
    target = max(min(error for _, error in side["curve"]) for side in (ours, peer))
    reached = {
        name: next(seconds for seconds, error in side["curve"] if error <= target)
        for name, side in (("ours", ours), ("peer", peer))
    }
    embed = ours["seconds_of_stages"]["embed"]
    return {
        "samples_per_s_times": round(ours["samples_per_s"] / peer["samples_per_s"], 1),
        "error_that_both_reached": target,
        "seconds_ours": reached["ours"],
        "seconds_ours_with_embedding": round(reached["ours"] + embed, 1),
        "seconds_peer": reached["peer"],
        "best_error_ours": min(error for _, error in ours["curve"]),
        "best_error_peer": min(error for _, error in peer["curve"]),
    }


if __name__ == "__main__":
    main()
