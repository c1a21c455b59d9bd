"""How close the training loop comes to the bare arithmetic, what streaming costs, and what the cache saves.

    python -m benchmarks.train [--rows 16384] [--rounds 3] [--model ViT-B-32]

The policy of configs/policy/chunk.yaml, the quickstart's batch, a store of noise with two cameras of 512 features.
By turns, in one run:
- bare: forward, backward, clipping, AdamW and average on tensors of the same shapes that are at hand;
- compiled: the same through torch.compile;
- resident, streaming: `pipeline.train.loop.train` with features in memory, and streamed in a bounded window from files
  that the kernel was asked to forget;
- graphed: on a GPU, resident with train_flow.cuda_graph;
- online: the same step with frames through a frozen CLIP in place of cached features.
Writes benchmarks/results/train.json.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.read import forget, share, write
from cache.reader import Store
from pipeline.config import Params, from_dict
from pipeline.config.compose import compose
from pipeline.encode.preprocess import Preprocess
from pipeline.encode.settings import EncoderParams
from pipeline.encode.weights import load_model
from pipeline.policy.finetuned import TunedPolicy
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.policy.normaliser import Noise
from pipeline.provenance import cpu_name, versions
from pipeline.train.data import FeatureSpec, Mode, load_stores
from pipeline.train.loop import train

CAMERAS, DIM, SUITE = ("agentview", "eye_in_hand"), 512, "libero_spatial"
WINDOW_MIB = 8
ONLINE_BATCH = {"cpu": 32, "cuda": 128}
MORE_EPOCHS = 8  # on a GPU, after the first
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip model of the online side (weights from a seed)")
    parser.add_argument("--folder", type=Path, help="where the store is made (default: the temporary directory)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train.json"))
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="bench-train-", dir=args.folder))
    try:
        result = measure(write(folder, args.rows), folder, args.rounds, args.model)
    finally:
        shutil.rmtree(folder)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(store: Store, folder: Path, rounds: int, model: str) -> dict[str, Any]:
    """Return the figures; rates are in samples (rows) per second."""
    load_before = round(os.getloadavg()[0], 1)
    params = settings()
    arch = Architecture.of(params.policy, DIM, DIM)
    batch = params.train_flow.batch_size
    steps = store.rows // batch
    files = [Path(store.location) / store.shard_key(n, unit) for n in store.fields for unit in range(store.units)]
    network, compiled = PolicyNetwork(arch), PolicyNetwork(arch)
    compiled.compile()
    bare = bare_step(network, params, features(arch, batch))
    fused = bare_step(compiled, params, features(arch, batch))
    fused()  # compiles
    ways: dict[str, Callable[[], float]] = {
        "bare": lambda: store.rows / (steps * seconds_of(bare, steps)),
        "compiled": lambda: store.rows / (steps * seconds_of(fused, steps)),
        "resident": lambda: store.rows / epoch_seconds(store, params, arch, "resident", folder),
        "streaming": lambda: store.rows / epoch_seconds(store, params, arch, "streaming", folder),
    }
    if DEVICE.type == "cuda":
        as_graph = replace(params, train_flow=replace(params.train_flow, cuda_graph=True))
        ways["graphed"] = lambda: store.rows / epoch_seconds(store, as_graph, arch, "resident", folder)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            forget(files)
            rates[name].append(round(way(), 1))
    online_batch = ONLINE_BATCH[DEVICE.type]
    image, online = online_seconds(params, arch, model, online_batch)
    cached = batch / (sorted(rates["resident"])[rounds // 2])
    embed = image * len(CAMERAS)
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "device": DEVICE.type, "load_before": load_before},
        "versions": {name: versions()[name] for name in ("python", "torch", "accelerate")},
        "rows": store.rows,
        "batch": batch,
        "parameters": network.parameter_counts()["total"],
        "streaming_window_mib": WINDOW_MIB,
        "features_mib": round(store.rows * len(CAMERAS) * DIM * 2 / 2**20),
        "samples_per_s": rates,
        "loop_share_of_bare": share(rates["resident"], rates["bare"]),
        "compiled_times_bare": share(rates["compiled"], rates["bare"]),
        "streaming_share_of_resident": share(rates["streaming"], rates["resident"]),
        "online": {
            "model": model,
            "batch": online_batch,
            "samples_per_s": round(online_batch / online, 2),
            "images_per_s_of_the_encoder": round(1 / image, 1),
        },
        "cached_times_online": round((batch / cached) / (online_batch / online)),
        "break_even_epochs": round(embed / (online / online_batch - cached / batch), 2),
    }


def settings() -> Params:
    """Return the quickstart's with that policy, in fp32, with what only measures accuracy reduced to nothing."""
    params = from_dict(yaml.safe_load(compose(["policy=chunk"])))
    train_flow = replace(
        params.train_flow,
        action="action",
        epochs=1,
        val_fraction=0.0,
        metrics_rows=1,
        memory_mib=WINDOW_MIB,
        warmup_steps=0,
        keyframe_weight=0.0,
        precision="no",
    )
    return replace(params, train_flow=train_flow)


def epoch_seconds(store: Store, params: Params, arch: Architecture, mode: Mode, folder: Path) -> float:
    """Return the time of an epoch, without that of loading and of the checkpoint at its end.

    On a GPU that is the mean of some epochs after the first, in which kernels are loaded and a graph is captured.
    """
    if DEVICE.type == "cpu":
        return trained_seconds(store, params, arch, mode, folder)
    several = replace(params, train_flow=replace(params.train_flow, epochs=1 + MORE_EPOCHS))
    first, all_of_them = (trained_seconds(store, p, arch, mode, folder) for p in (params, several))
    return (all_of_them - first) / MORE_EPOCHS


def trained_seconds(store: Store, params: Params, arch: Architecture, mode: Mode, folder: Path) -> float:
    """Train; return the time of the epochs."""
    cfg = params.train_flow
    table = load_stores([(SUITE, store, None)], FeatureSpec(CAMERAS, arch.proprio), cfg.action, mode, cfg.memory_mib)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    _, progress = train(Accelerator(cpu=DEVICE.type == "cpu"), table, arch, cfg, scratch)
    shutil.rmtree(scratch)
    return progress.wall_s


def features(arch: Architecture, rows: int) -> tuple[dict[str, torch.Tensor], ...]:
    """Return images, and the other inputs, of one batch."""
    images = {c: torch.randn(rows, DIM, device=DEVICE).half() for c in CAMERAS}
    return images, {name: torch.randn(rows, width, device=DEVICE) for name, width in arch.proprio_dims.items()}


def bare_step(
    network: PolicyNetwork, params: Params, inputs: tuple[dict[str, torch.Tensor], ...]
) -> Callable[[], None]:
    """Return one optimiser step on the same batch each time."""
    network.to(DEVICE)
    cfg, (images, proprio) = params.train_flow, inputs
    rows = len(next(iter(images.values())))
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay)) if cfg.ema_decay else None
    shape = (rows, network.arch.horizon, network.arch.action_dim)
    text, actions = torch.randn(rows, DIM, device=DEVICE), torch.rand(shape, device=DEVICE)
    levels = torch.zeros(rows, network.arch.image_dim, dtype=torch.int8, device=DEVICE)
    spread = {name: Noise.of(levels, params.policy.feature_noise) for name in images}

    def step() -> None:
        noise, t = torch.randn(shape, device=DEVICE), torch.rand(rows, device=DEVICE)
        network(images, text, proprio, actions, noise, t, spread).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, cfg.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update_parameters(network)

    return step


def online_seconds(params: Params, arch: Architecture, model: str, batch: int) -> tuple[float, float]:
    """Return seconds of the frozen encoder per image, and of a step on `batch` rows of frames; in bf16 on a GPU."""
    clip: Any = load_model(EncoderParams(model, "seeded", 0, "fp32"))
    preprocess = Preprocess.from_open_clip(clip.visual.preprocess_cfg)
    network = TunedPolicy(replace(arch, image_dim=clip.visual.output_dim), clip.visual, preprocess)
    size = (batch, params.sim.image_size, params.sim.image_size, 3)
    frames = {c: torch.randint(0, 256, size, dtype=torch.uint8, device=DEVICE) for c in CAMERAS}
    _, proprio = features(arch, batch)
    step = bare_step(network, params, (frames, proprio))
    images = next(iter(frames.values()))

    @torch.no_grad()
    def encode() -> None:
        network.visual(preprocess(images))

    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
        return seconds_of(encode, 4) / batch, seconds_of(step, 4)


def seconds_of(work: Callable[[], None], times: int) -> float:
    """Return how long it takes once, on the average, after a first time that is not counted."""
    work()
    _wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - started) / times


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
