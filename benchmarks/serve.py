"""What serving costs: the server's own time beside a direct call, and requests/s and latency of many clients.

    python -m benchmarks.serve [--clients 1 8 64] [--requests 256]

An untrained policy of the quickstart's sizes (or --policy's) behind `stages.serve` in a process of its own; clients on
loopback that send openpi's LIBERO observation, two pictures of 224 pixels, and ask again as soon as they have a reply.
Overhead is what a client waits beyond the policy's own time, which each reply names: at one client the server's own; at
more of them also the wait for the batch before. Writes benchmarks/results/serve.json.
"""

import argparse
import asyncio
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from websockets.asyncio.client import connect

from examples.openpi_loop import served
from pipeline.compute import cores
from pipeline.config import load
from pipeline.encode.clip import ClipEncoder, pick_device
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.encode.settings import EncoderParams
from pipeline.inference.codec import pack, unpack
from pipeline.inference.openpi import to_openpi
from pipeline.inference.policy import Policy
from pipeline.libero.installation import picture_identity
from pipeline.policy.bundle import PolicySpec, save
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.provenance import cpu_name, versions

INSTRUCTION = "pick up the black bowl and place it on the plate"
WARM_UP = 3


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--policy", help="bundle (default: an untrained one)")
    parser.add_argument("--model", help="CLIP of the untrained one, such as ViT-B-32 (default: that of params)")
    parser.add_argument("--device", default=pick_device())
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=256, help="at each number of clients (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve.json"))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(args.policy or untrained(args.params, Path(folder) / "policy", args.model))
        result = {
            "machine": {
                "cpu": cpu_name(),
                "cores": cores(),
                "device": name_of(args.device),
                "load": os.getloadavg()[0],
            },
            "versions": versions(),
            **measure(policy, args.device, args.clients, args.requests),
        }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"direct call {result['direct_ms']} ms")
    for row in result["clients"]:
        print(
            "{clients:4} clients: {per_s:7.1f} requests/s, p50 {p50_ms} ms, p99 {p99_ms} ms, batch {batch}, "
            "beyond the policy's own time {overhead_ms} ms".format(**row)
        )


def measure(policy: Path, device: str, clients: list[int], requests: int) -> dict[str, Any]:
    """Return the figures of one policy."""
    direct, encoder = direct_ms(policy, device, max(10, requests // 8))
    with served(str(policy), "--device", device) as url:
        rows = [asyncio.run(load_with(url, n, requests)) for n in clients]
    return {"encoder": encoder, "direct_ms": direct, "request_bytes": len(message(0)), "clients": rows}


def untrained(params_file: str, path: Path, model: str | None) -> Path:
    """Write a policy with seeded weights: latency does not depend on their values."""
    params = load(params_file)
    named = params.embed.encoder
    settings = EncoderParams(model or named.model, "seeded", 0, named.precision)
    grid = params.embed.grid if params.policy.features == "grid" else None
    encoder = ClipEncoder(settings, "cpu", grid)
    width = encoder.tokens[1] if encoder.tokens else encoder.dim
    arch = Architecture.of(params.policy, width, encoder.dim, grid.size**2 if grid else None)
    torch.manual_seed(0)
    data = {"sim": picture_identity(params.sim), "tasks": {}}
    kept = asdict(grid) if grid else None
    save(path, PolicyNetwork(arch), PolicySpec(arch, encoder.identity, "none", kept, TRANSFORM_ID, data, {}))
    return path


def direct_ms(path: Path, device: str, repeat: int) -> tuple[float, str]:
    """Return the median time of a call of the policy in this process, and the encoder's name."""
    policy = Policy.load(path, device)
    observation = {name: x[None] for name, x in observed(0).items()}
    noise = policy.noise([0])
    found = []
    for _ in range(repeat + WARM_UP):
        started = perf_counter()
        policy.infer(observation, [INSTRUCTION], noise)
        found.append(1e3 * (perf_counter() - started))
    return round(float(np.median(found[WARM_UP:])), 3), policy.spec.encoder["model"]


async def load_with(url: str, clients: int, requests: int) -> dict[str, Any]:
    """Return requests/s and latencies of so many clients at once."""
    waited: list[float] = []
    overheads: list[float] = []
    batches: list[int] = []
    each = max(1, requests // clients)
    ready = asyncio.Barrier(clients)

    async def one(seed: int) -> tuple[float, float]:
        content = message(seed)
        async with connect(url, compression=None, max_size=None, proxy=None) as ws:
            await ws.recv()
            for _ in range(WARM_UP):
                await ws.send(content)
                await ws.recv()
            await ready.wait()
            began = perf_counter()
            for _ in range(each):
                started = perf_counter()
                await ws.send(content)
                reply = unpack(await ws.recv())  # type: ignore[arg-type]
                waited.append(1e3 * (perf_counter() - started))
                overheads.append(waited[-1] - reply["policy_timing"]["infer_ms"])
                batches.append(reply["policy_timing"]["batch"])
            return began, perf_counter()

    times = await asyncio.gather(*(one(seed) for seed in range(clients)))
    seconds = max(end for _, end in times) - min(began for began, _ in times)
    p50, p99 = np.percentile(waited, [50, 99]).round(2).tolist()
    return {
        "clients": clients,
        "requests": len(waited),
        "per_s": round(len(waited) / seconds, 2),
        "p50_ms": p50,
        "p99_ms": p99,
        "overhead_ms": round(float(np.median(overheads)), 3),
        "batch": round(float(np.mean(batches)), 2),
    }


def observed(seed: int) -> dict[str, np.ndarray]:
    """Return an observation under our own names."""
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (224, 224, 3), np.uint8) for camera in ("agentview", "eye_in_hand")}
    pose = np.array([0.1, 0.2, 1.0, 1, 0, 0, 0], np.float32)
    joints = rng.normal(size=7).astype(np.float32)
    return {**images, "ee_pose": pose, "gripper": np.array([0.02, -0.02], np.float32), "joint_pos": joints}


def message(seed: int) -> bytes:
    """Return what openpi's client would send, with the joints."""
    seen = observed(seed)
    images = {name: seen.pop(name) for name in ("agentview", "eye_in_hand")}
    return pack(to_openpi(images, seen, INSTRUCTION))


def name_of(device: str) -> str:
    """Return what a device calls itself."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
