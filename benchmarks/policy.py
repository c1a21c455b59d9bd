"""What an action costs: every head's latency at batch 1, by sampling steps, eager and compiled; parameters, FLOPs.

    python -m benchmarks.policy [--repeat 200] [--rounds 3]

The reference's head (one action, from configs/policy/reference.yaml) and that of action chunks (16 actions), then the
other heads and networks at its sizes, on seeded weights: latency does not depend on their values. Fusion is part of it,
CLIP is not. Compiled is the network that is asked at every step; on a GPU the whole call, and graphed is what a policy
does there (pipeline.inference.graphed). By turns, in one run; medians. Writes benchmarks/results/policy.json.
"""

import argparse
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from pipeline.compute import cores
from pipeline.config.compose import compose
from pipeline.config.load import from_dict
from pipeline.inference.graph import NOISE, TEXT
from pipeline.inference.graphed import HEADS, GraphedSampling
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.policy.settings import HEADS_IN_STEPS
from pipeline.policy.velocity import VelocityNetwork
from pipeline.provenance import cpu_name, versions

DIM = 512
STEPS = (1, 2, 4, 10, 50)
COMPILED_STEPS = (10,)
CHUNK = "policy=chunk"
BOUNDED = "policy.standardise_actions=false"
POLICIES: dict[str, list[str]] = {
    "reference": ["policy=reference"],
    "chunk": [CHUNK],
    "flow, residual": [CHUNK, "policy.head_network=residual"],
    "diffusion, mlp": [CHUNK, "policy.head=diffusion", BOUNDED],
    "l1": [CHUNK, "policy.head=l1"],
    "cvae": [CHUNK, "policy.head=cvae"],
    "tokens": [CHUNK, "policy.head=tokens", BOUNDED],
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=POLICIES, default=list(POLICIES), help="policies (default: all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/policy.json"))
    args = parser.parse_args(argv)
    torch.set_num_threads(cores())
    result: dict[str, Any] = {
        "machine": {"cpu": cpu_name(), "cores": cores(), "device": DEVICE.type, "load_before": os.getloadavg()[0]},
        "versions": versions(),
        "unit": "ms for one call of the policy on features, batch 1, median",
        "policies": {name: measure(POLICIES[name], args.repeat, args.rounds) for name in args.only},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in result["policies"].items():
        ways = "  ".join(f"{way} {row[f'{way}_ms']}" for way in ("eager", "compiled", "graphed"))
        print(f"{name:20} {row['parameters'] / 1e6:5.2f} M  {ways}")


def measure(overrides: list[str], repeat: int, rounds: int) -> dict[str, Any]:
    """Return one policy's figures."""
    params = from_dict(yaml.safe_load(compose(overrides)))
    arch = Architecture.of(params.policy, DIM, DIM)
    torch.manual_seed(0)
    network = PolicyNetwork(arch).to(DEVICE).eval()
    steps = STEPS if arch.head in HEADS_IN_STEPS else (1,)
    ways: dict[tuple[str, int], Callable[[], Any]] = {("eager", n): call(network.act, arch, n) for n in steps}
    if arch.head in HEADS_IN_STEPS:
        act = compiled(network)
        ways |= {("compiled", n): call(act, arch, n) for n in COMPILED_STEPS}
    if DEVICE.type == "cuda" and arch.head in HEADS:
        ways |= {("graphed", n): call(graphed(network, n), arch, n) for n in steps}
    found: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for way in ways.values():
        way()  # compiles
    for _ in range(rounds):
        for key, way in ways.items():
            found[key] += [milliseconds(way) for _ in range(repeat // rounds)]
    with FlopCounterMode(display=False) as counter:
        ways["eager", min(10, steps[-1])]()
    times = {key: round(median(values), 3) for key, values in found.items()}
    return {
        "overrides": overrides,
        "parameters": network.parameter_counts()["total"],
        "actions": arch.horizon,
        "mflop_at_10_steps": round(counter.get_total_flops() / 1e6, 2),
        "eager_ms": {n: ms for (way, n), ms in times.items() if way == "eager"},
        "compiled_ms": {n: ms for (way, n), ms in times.items() if way == "compiled"},
        "graphed_ms": {n: ms for (way, n), ms in times.items() if way == "graphed"},
    }


def compiled(network: PolicyNetwork) -> Callable[..., Any]:
    """Return `act` of a copy of the network that is compiled."""
    copied = copy.deepcopy(network)
    if DEVICE.type == "cuda":
        return torch.compile(copied.act, mode="reduce-overhead")
    velocity = next(part for part in copied.head.modules() if isinstance(part, VelocityNetwork))
    # All ten steps would take minutes.
    velocity.velocity_at = torch.compile(velocity.velocity_at)  # type: ignore[method-assign]
    return copied.act


def graphed(network: PolicyNetwork, steps: int) -> Callable[..., Any]:
    """Return `act` as a policy on a GPU samples."""
    sample = GraphedSampling(network, steps)
    return lambda images, text, proprio, noise, _: sample({**images, **proprio, TEXT: text, NOISE: noise})


def call(act: Callable[..., Any], arch: Architecture, steps: int) -> Callable[[], Any]:
    """Return a call on made-up features."""
    images = {camera: torch.randn(1, arch.image_dim, device=DEVICE) for camera in arch.cameras}
    proprio = {name: torch.randn(1, width, device=DEVICE) for name, width in arch.proprio_dims.items()}
    text = torch.randn(1, arch.text_dim, device=DEVICE)
    noise = torch.randn(1, arch.horizon, arch.action_dim, device=DEVICE)

    @torch.no_grad()
    def run() -> Any:
        return act(images, text, proprio, noise, steps).cpu()

    return run


def milliseconds(function: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    started = perf_counter()
    function()
    return 1e3 * (perf_counter() - started)


if __name__ == "__main__":
    main()
