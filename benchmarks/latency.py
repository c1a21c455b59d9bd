"""What an action costs from image to action, encoder and head apart: PyTorch eager and compiled, and ONNX Runtime.

    python -m benchmarks.latency [--repeat 300] [--model ViT-B-32]

Batch 1, two threads, untrained weights: latency does not depend on their values. Ways take turns in blocks, and the
first call of a block, which finds the other way's data in the processor's caches, is not counted.
- head: normaliser, fusion and action head on features that are there, by sampling steps. Compiled is the network that
  is asked at every step, as in benchmarks.policy; in ONNX Runtime all steps are one graph.
- encoder: one frame of the encoder's own size to pooled features.
- image to action: frames of 128 x 128 of each camera, through resizing, encoder and head at 10 steps. int8 is the image
  tower in 8 bits, the head being in fp32 always. The quickstart is measured with its own encoder's patch tokens.
Writes benchmarks/results/latency.json. Run it on a machine that has nothing else to do: load_before tells.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import yaml

from benchmarks.policy import compiled
from pipeline.compute import cores
from pipeline.config import Params
from pipeline.config.compose import compose
from pipeline.config.load import from_dict
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.encode.settings import EncoderParams
from pipeline.inference import manifest
from pipeline.inference.export import export, write_graph
from pipeline.inference.graph import Inputs, UnrolledPolicy, act
from pipeline.inference.policy import Policy
from pipeline.inference.runtime import OnnxPolicy
from pipeline.policy.bundle import PolicyBundle, PolicySpec
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.provenance import cpu_name, versions

THREADS, BLOCK, SIDE = 2, 20, 128
STEPS = (1, 2, 4, 10, 50)
WHOLE_STEPS = 10
QUICKSTART = "the quickstart"
ONE_CAMERA = "one camera, one action"
POLICIES = {
    ONE_CAMERA: ["policy=reference"],
    "two cameras, 16 actions": ["policy=chunk"],
    "two cameras, 16 actions, residual": ["policy=chunk", "policy.head_network=residual"],
    QUICKSTART: ["experiment=quickstart"],
}
LIMITS_MS = {"head, 10 steps, ONNX Runtime": 2.0, "image to action, one camera, ONNX Runtime fp32": 60.0}
Times = dict[str, float]


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=300, help="calls of the head, each way (default: %(default)s)")
    parser.add_argument("--images", type=int, default=100, help="calls of the encoder, each way (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="of sampling (default: all)")
    parser.add_argument("--only", nargs="+", choices=POLICIES, default=list(POLICIES), help="policies (default: all)")
    parser.add_argument("--model", default="ViT-B-32", help="open_clip model, its weights from a seed")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency.json"))
    args = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    load = os.getloadavg()[0]
    encoders = {name: encoder_of(name, args.model) for name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {
            "machine": {"cpu": cpu_name(), "cores": cores(), "threads": THREADS, "load_before": load},
            "versions": versions() | {"onnxruntime": ort.__version__},
            "unit": "ms a call, batch 1",
            "head": {
                name: head(network_of(name, encoder), args.steps, args.repeat, Path(folder))
                for name, encoder in encoders.items()
            },
        }
        result |= images(encoders, args.images, Path(folder))
    result["limits_ms"] = {name: {"limit": limit, "medians": held(result, name)} for name, limit in LIMITS_MS.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def params_of(name: str) -> Params:
    """Return the settings of one of POLICIES."""
    return from_dict(yaml.safe_load(compose(POLICIES[name])))


def encoder_of(name: str, model: str) -> ClipEncoder:
    """Return `model` for pooled features; for the quickstart its own."""
    if name != QUICKSTART:
        return ClipEncoder(EncoderParams(model, "seeded", 0, "fp32"))
    embed = params_of(name).embed
    return ClipEncoder(replace(embed.encoder, precision="fp32"), grid=embed.grid)


def network_of(name: str, encoder: ClipEncoder) -> PolicyNetwork:
    """Return one of POLICIES, untrained."""
    params = params_of(name)
    patches, width = encoder.tokens or (None, encoder.dim)
    torch.manual_seed(0)
    return PolicyNetwork(Architecture.of(params.policy, width, encoder.dim, patches)).eval()


def head(network: PolicyNetwork, steps: list[int], repeat: int, folder: Path) -> dict[str, dict[str, Times]]:
    """Return steps -> way -> times."""
    fast = compiled(network)
    found = {}
    for n in steps:
        graph = UnrolledPolicy(network, n)
        inputs = graph.examples(1, 0)
        write_graph(folder / "head.onnx", graph, {})
        session = manifest.session((folder / "head.onnx").read_bytes(), THREADS)
        arrays = {name: x.numpy() for name, x in inputs.items()}
        found[str(n)] = by_turns(
            {
                "eager": partial(act, network, inputs, n),
                "compiled": partial(call, fast, network.arch, inputs, n),
                "ONNX Runtime": partial(session.run, None, arrays),
            },
            repeat,
        )
    return found


def call(function: Callable[..., Any], arch: Architecture, inputs: Inputs, steps: int) -> Any:
    """Call `PolicyNetwork.act`, or what does the same, on inputs by name."""
    images, proprio = ({name: inputs[name] for name in part} for part in (arch.cameras, arch.proprio))
    return function(images, inputs["text"], proprio, inputs["noise"], steps)


def images(encoders: dict[str, ClipEncoder], repeat: int, folder: Path) -> dict[str, Any]:
    """Return times of the first encoder, and from image to action for policies of one and two cameras."""
    result: dict[str, Any] = {"encoder": {}, "image_to_action": {}}
    for name, encoder in encoders.items():
        if "residual" in name:
            continue
        network = network_of(name, encoder)
        arch = network.arch
        grid = asdict(params_of(name).embed.grid) if arch.patches else None  # type: ignore[arg-type]
        spec = PolicySpec(arch, encoder.identity, "none", grid, TRANSFORM_ID, {}, {})
        bundle = PolicyBundle(spec, network, torch.device("cpu"), None)
        export(bundle, encoder, ["pick up the bowl"], folder / "onnx", WHOLE_STEPS, int8=True)
        if not result["encoder"]:
            result["encoder"] = encoder_times(encoder, folder / "onnx", repeat)
        frames = np.random.default_rng(0).integers(0, 256, (len(arch.cameras), SIDE, SIDE, 3), np.uint8)
        state = {name: x[0].numpy() for name, x in UnrolledPolicy(network, 1).examples(1, 0).items()}
        observation = dict(zip(arch.cameras, frames, strict=True)) | {name: state[name] for name in arch.proprio}
        if "ee_pose" in observation:
            observation["ee_pose"] = np.array([0, 0, 1, 1, 0, 0, 0], np.float32)
        result["image_to_action"][name] = by_turns(
            {
                "eager": torch_way(bundle, encoder, observation),
                **{
                    f"ONNX Runtime {kind}": onnx_way(folder / "onnx", kind == "int8", observation)
                    for kind in ("fp32", "int8")
                },
            },
            repeat,
        )
    return result


def encoder_times(encoder: ClipEncoder, folder: Path, repeat: int) -> dict[str, Times]:
    """Return way -> times of one frame."""
    frames = torch.randint(0, 256, (1, encoder.image_size, encoder.image_size, 3), dtype=torch.uint8)
    prepared, fast = encoder.preprocess(frames), torch.compile(encoder.tower, dynamic=False)
    sessions = {
        kind: manifest.session((folder / name).read_bytes(), THREADS)
        for kind, name in (("fp32", manifest.IMAGE), ("int8", manifest.IMAGE_INT8))
    }
    with torch.inference_mode():
        ways: dict[str, Callable[[], Any]] = {
            "eager": partial(encoder.tower, prepared),
            "compiled": partial(fast, prepared),
        }
        for kind, session in sessions.items():
            ways[f"ONNX Runtime {kind}"] = partial(session.run, None, {"frames": frames.numpy()})
        return by_turns(ways, repeat)


def torch_way(bundle: PolicyBundle, encoder: ClipEncoder, observation: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Return a call from observation to action in PyTorch."""
    policy = Policy(bundle, encoder, WHOLE_STEPS)
    return lambda: policy.act(observation, "pick up the bowl")


def onnx_way(folder: Path, int8: bool, observation: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Return a call from observation to action by an export."""
    policy = OnnxPolicy(folder, THREADS, int8)
    return lambda: policy.act(observation, "pick up the bowl")


def by_turns(ways: dict[str, Callable[[], Any]], repeat: int) -> dict[str, Times]:
    """Return way -> median, 95th and 99th percentile of `repeat` calls, in ms."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # compiles
    while len(next(iter(times.values()))) < repeat:
        for name, way in ways.items():
            way()
            for _ in range(min(BLOCK, repeat)):
                started = perf_counter()
                way()
                times[name].append(1e3 * (perf_counter() - started))
    places = {"median": 50, "p95": 95, "p99": 99, "min": 0}
    return {
        name: {place: round(float(np.percentile(found, at)), 3) for place, at in places.items()}
        for name, found in times.items()
    }


def held(result: dict[str, Any], limit: str) -> dict[str, float]:
    """Return the medians that a limit is about, by policy; none that was not measured."""
    heads, wholes = result["head"], result["image_to_action"]
    if limit.startswith("head"):
        return {name: times["10"]["ONNX Runtime"]["median"] for name, times in heads.items() if "10" in times}
    return {name: ways["ONNX Runtime fp32"]["median"] for name, ways in wholes.items() if name == ONE_CAMERA}


def show(result: dict[str, Any]) -> None:
    """Print the figures, a way a line."""
    rows = [(f"head, {name}, {n} steps", ways) for name, by in result["head"].items() for n, ways in by.items()]
    rows += [("encoder", result["encoder"])]
    rows += [(f"image to action, {name}", ways) for name, ways in result["image_to_action"].items()]
    for name, ways in rows:
        print(name)
        for way, found in ways.items():
            print(f"  {way:20} {found['median']:8.2f} ms   p95 {found['p95']:8.2f}   p99 {found['p99']:8.2f}")


if __name__ == "__main__":
    main()
