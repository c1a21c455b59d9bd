"""How near the embedding stage comes to the encoder alone.

    python -m benchmarks.embed [--model ViT-S-32] [--frames 1024] [--threads 1]

Writes made-up demonstrations of 128-pixel frames, then measures in this one process, by turns: the bare encoder on
batches that are prepared already, and the build end to end (reading HDF5, resizing, encoding, writing, fsync,
verifying). Writes benchmarks/results/embed.json.
"""

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cache import schema, units
from cache.build import build
from cache.fingerprint import Plan
from pipeline.compute import cores, map_unordered
from pipeline.config import Compute, EncoderParams, Sim
from pipeline.encode.augment import Views
from pipeline.encode.clip import pick_device, resolve_precision
from pipeline.encode.rows import MakeRows, shared_encoder
from pipeline.libero.demonstrations import Demo, demo_file, read, scan
from pipeline.libero.recording import Episode, Origin, write_demos
from pipeline.libero.suites import tasks
from pipeline.provenance import versions

CAMERAS = ("agentview", "eye_in_hand")
SUITE = "libero_spatial"
SIDE = 128
SIM = Sim("embedded", None, "fast", "auto", SIDE, 10, 0)
STEPS = 128  # of a demonstration


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-S-32")
    parser.add_argument("--frames", type=int, default=1024, help="images in all, both cameras together")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/embed.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = Path(tempfile.mkdtemp(prefix="bench-embed-"))
    try:
        result = measure(args, folder)
    finally:
        shutil.rmtree(folder)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """Return the figures."""
    device = pick_device()
    params = EncoderParams(args.model, "seeded", 0, resolve_precision("auto", device))
    encoder = shared_encoder(params, device)
    rows = args.frames // len(CAMERAS)
    demos = write(folder, rows)
    made = plan(demos, encoder.dim)
    factory = MakeRows(params, None, encoder.identity, read, made.fields, Views(1, 0.0, 0.0, 0), 0, args.batch)
    frames = read(demos[0], CAMERAS[:1], 0, args.batch)["images"][CAMERAS[0]]
    batches = [encoder.prepare(frames), encoder.prepare(frames[::-1])]
    text = np.ones((1, encoder.dim), np.float32)
    run = partial(map_unordered, compute=Compute("serial", None, args.threads))
    encoder.forward(batches[0])
    bare, whole = [], []
    for turn in range(args.rounds):
        started = time.perf_counter()
        for i in range(args.frames // args.batch):
            encoder.forward(batches[i % 2])
        bare.append(args.frames // args.batch * args.batch / (time.perf_counter() - started))
        started = time.perf_counter()
        build(made, text, factory, folder / f"{turn}.zarr", folder / f"work{turn}", run=run)
        whole.append(rows * len(CAMERAS) / (time.perf_counter() - started))
    return {
        "machine": {"cpu": cpu_name(), "cores": cores(), "device": device, "threads": args.threads},
        "versions": versions(),
        "model": args.model,
        "precision": encoder.precision,
        "batch": args.batch,
        "images": rows * len(CAMERAS),
        "bare_encoder_images_per_s": [round(x, 2) for x in bare],
        "end_to_end_images_per_s": [round(x, 2) for x in whole],
        "share_of_bare": round(statistics.median(w / b for w, b in zip(whole, bare, strict=True)), 3),
    }


def write(root: Path, rows: int) -> list[Demo]:
    """Write demonstrations of smooth noise in LIBERO's layout, `rows` steps in all, and return them."""
    task = tasks(SUITE, [0])[0]
    lengths = [min(STEPS, rows - start) for start in range(0, rows, STEPS)]
    write_demos(demo_file(root, task), task, [episode(n, i) for i, n in enumerate(lengths)], SIM)
    return scan(root, SUITE, [task])[0]


def episode(length: int, seed: int) -> Episode:
    """Return one demonstration."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (len(CAMERAS), length, SIDE // 8, SIDE // 8, 3), np.uint8)
    frames = small.repeat(8, 2).repeat(8, 3)
    pose = np.tile(np.array([0, 0, 1, 1, 0, 0, 0], np.float32), (length, 1))
    return Episode(
        images=dict(zip(CAMERAS, frames, strict=True)),
        joint_pos=np.zeros((length, 7), np.float32),
        ee_pose=pose,
        gripper=np.zeros((length, 2), np.float32),
        states=np.zeros((length, 92)),
        actions=np.ones((length, 7)),
        expert_actions=np.ones((length, 7)),
        model_xml="<mujoco/>",
        env_name="Libero_Tabletop_Manipulation",
        origin=Origin(0, 0, 0),
    )


def plan(demos: list[Demo], dim: int) -> Plan:
    """Return a plan over the demonstrations."""
    return Plan(
        identity={"benchmark": True},
        fields=schema.fields(CAMERAS, 1, dim, True),
        episodes=tuple(units.Episode(demo.length, 0, demo.name, demo.name, payload=demo) for demo in demos),
        instructions=("none",),
        task_ids=(0,),
        shard_rows=256,
        chunk_rows=256,
    )


def cpu_name() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
