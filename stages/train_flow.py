"""Stage two: train fusion and flow on the cached features.

    accelerate launch --cpu -m stages.train_flow                # the smallest: one CPU process
    accelerate launch stages/train_flow.py                      # as accelerate is configured: one GPU, several, nodes
    accelerate launch --config_file configs/accelerate/gpu2.yaml -m stages.train_flow

Reads data/embeddings/<suite>.zarr; writes the policy bundle runs/flow/policy and runs/flow/train.json. Stopped at any
time and started again it goes on from its last checkpoint, in .scratch/train/, and ends in the same policy.
"""

import argparse
import contextlib
import csv
import io
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from cache.plan import differences
from cache.reader import Store, open_store
from pipeline.compute import cores
from pipeline.config import Params
from pipeline.errors import ConfigError, DataError
from pipeline.files import exclusive, require_writable, write_atomic
from pipeline.libero.depth import is_depth
from pipeline.libero.suites import tasks
from pipeline.memory import keep_freed_memory
from pipeline.policy import bundle
from pipeline.policy.finetuned import TunedPolicy
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.provenance import code_digest, provenance, versions
from pipeline.train import checkpoint, curves
from pipeline.train.curves import TRACKERS, make_trackers
from pipeline.train.data import Table, Wanted, load_stores
from pipeline.train.finetune import Tower, load_tower
from pipeline.train.loop import Progress, train
from pipeline.train.recipe import recipe
from pipeline.train.reflow import load_teacher
from stages import cli

log = logging.getLogger(__name__)
METRICS = ("train_loss", "val_loss", "train_action_mse", "val_action_mse", "val_action_mae", "wall_s")

# Processes wait for the main one, which alone measures the validation split. Through CLIP that can take longer than
# the ten minutes that torch allows.
PATIENCE = timedelta(hours=2)


def main(argv: list[str] | None = None) -> None:
    """Train by params.yaml and publish the policy."""
    args = arguments(argv)
    params, out = cli.settings(args), Path(args.out)
    for folder in (out, Path(args.scratch)):
        require_writable(folder)
    keep_freed_memory()
    accelerator = make_accelerator(params, args.track, out)
    stores = {suite: open_store(Path(args.embeddings) / f"{suite}.zarr") for suite in params.data.suites}
    table = load_stores(
        [(suite, store, learnt_tasks(params, suite, store)) for suite, store in stores.items()],
        Wanted.by(params.policy, params.train_flow.keyframe_weight > 0),
        params.train_flow.action,
        params.train_flow.data_mode,
        params.train_flow.memory_mib,
    )
    source = next(iter(stores.values())).identity
    check_encoder(params, stores)
    grid = source.get("grid")
    patches = grid["size"] ** 2 if grid else None
    arch = Architecture.of(params.policy, table.images.dim, table.text.shape[1], patches)
    teacher = load_teacher(params.train_flow, arch, source, out, accelerator.device)
    identity = training_identity(params, arch, stores)
    weights_bytes = 4 * sum(parameter.numel() for parameter in PolicyNetwork(arch).parameters())
    require_writable(out, weights_bytes)
    require_writable(Path(args.scratch), 4 * weights_bytes)  # a checkpoint: also their average, and AdamW's moments
    with accelerator.main_process_first():
        scratch = checkpoint.claim(Path(args.scratch), identity)
    with contextlib.ExitStack() as locks:
        if accelerator.is_main_process:
            locks.enter_context(exclusive(scratch.with_suffix(".lock"), "training"))
            locks.enter_context(exclusive(out / "training.lock", "output"))
        tower = make_tower(params, table, stores, Path(args.demos))
        curves.begin(accelerator, args.track, out)
        network, progress = train(accelerator, table, arch, params.train_flow, scratch, tower, teacher)
        if accelerator.is_main_process:
            tune = params.train_flow.encoder.tune
            facts = (source["encoder"], tune, grid if arch.patches else None, source["transform"], identity["data"])
            made = recipe(
                params.train_flow,
                params.policy.feature_noise,
                params.demos.source,
                table.episodes,
                source["encoder"],
                accelerator.device,
            )
            publish(out, network, bundle.PolicySpec(arch, *facts, provenance(), made), progress, accelerator)
            checkpoint.remove(scratch)
    accelerator.end_training()


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--variant", metavar="NAME", help="train what comparison.policies.NAME names")
    parser.add_argument("--embeddings", default="data/embeddings", help="where the stores are (default: %(default)s)")
    parser.add_argument(
        "--demos",
        default="data/demos",
        help="frames, read if train_flow.encoder.tune asks for them (default: %(default)s)",
    )
    parser.add_argument("--out", default="runs/flow", help="directory to write (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/train", help="directory of checkpoints (default: %(default)s)")
    parser.add_argument(
        "--track",
        nargs="*",
        choices=TRACKERS,
        default=TRACKERS,
        help="curves to write while it runs, below --out (default: %(default)s)",
    )
    return parser.parse_args(argv)


def make_accelerator(params: Params, trackers: Sequence[str], out: Path) -> Accelerator:
    """Return the accelerator of this process, its threads set."""
    cpu = not torch.accelerator.is_available()
    if cpu and params.train_flow.precision == "fp16":
        raise ConfigError("train_flow.precision is fp16, which takes a GPU, and there is none. Use bf16, or 'no'")
    # Without cpu=True, Accelerate on a machine without a GPU takes several processes for as many single ones.
    accelerator = Accelerator(
        mixed_precision=params.train_flow.precision,
        cpu=cpu,
        log_with=make_trackers(trackers, out) or None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),  # the normaliser's, which never change
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    if accelerator.device.type == "cpu":  # accelerate launch allows one thread, whatever the machine has
        here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(max(1, cores() // here))
    return accelerator


def check_encoder(params: Params, stores: dict[str, Store]) -> None:
    """Refuse stores of another encoder than the settings name. Raises DataError."""
    for store in stores.values():
        made, asked = store.identity["encoder"], params.embed.encoder.identity
        if other := differences({name: made.get(name) for name in asked}, asked):
            raise DataError(
                f"{store.location}: embed.encoder is another than the store's: {'; '.join(other)}. Set it back, or "
                "embed again: dvc repro embed"
            )


def make_tower(params: Params, table: Table, stores: dict[str, Store], demos: Path) -> Tower | None:
    """Return what training through CLIP needs; None on cached features."""
    if params.train_flow.encoder.tune == "none":
        return None
    return load_tower(params.embed.encoder, params.train_flow, table, stores, demos, params.policy.cameras)


def publish(
    out: Path, network: PolicyNetwork, spec: bundle.PolicySpec, progress: Progress, accelerator: Accelerator
) -> None:
    """Write the policy, and how it came about."""
    bundle.save(out / "policy", network, spec, network.tower() if isinstance(network, TunedPolicy) else None)
    write_history(out, progress, network.parameter_counts(), accelerator, spec.recipe)
    final = progress.published
    print(
        f"trained {progress.step} steps in {progress.wall_s:.0f} s; loss {final['train_loss']:.4f}, "
        f"action MSE {final['train_action_mse']:.5f}, MAE {final['train_action_mae']:.4f} on training "
        f"episodes: {out / 'policy'}"
    )


def training_identity(params: Params, arch: Architecture, stores: dict[str, Store]) -> dict[str, Any]:
    """Return everything that the trained weights depend on, as plain JSON values. Checkpoints are filed under it."""
    first = next(iter(stores.values())).identity
    return {
        "architecture": arch.to_json(),
        "train_flow": asdict(params.train_flow),
        "data": {
            "stores": {suite: store.fingerprint for suite, store in stores.items()},
            "tasks": {suite: learnt_tasks(params, suite, store) for suite, store in stores.items()},
            "action": params.train_flow.action,
            "sim": first["sim"],
            **({"depth": first["depth"]} if any(is_depth(camera) for camera in arch.cameras) else {}),
            "teacher": teacher_identity(params.train_flow.teacher),
        },
        "code": code_digest("policy", "train"),
        "versions": {name: versions()[name] for name in ("torch", "accelerate", "diffusers")},
    }


def learnt_tasks(params: Params, suite: str, store: Store) -> tuple[int, ...] | None:
    """Return the tasks of a suite to learn from; None is all that the store has.

    Raises:
        DataError: no such task to hold out, or none is left.
    """
    chosen, held_out = params.data.tasks[suite], params.train_flow.held_out_tasks.get(suite)
    if not held_out:
        return chosen
    without = {task.id for task in tasks(suite, held_out)}
    left = tuple(i for i in (chosen or map(int, store.texts.task_ids)) if i not in without)
    if not left:
        raise DataError(f"train_flow.held_out_tasks holds out every task of {suite}. Leave some to learn from")
    return left


def teacher_identity(path: str | None) -> dict[str, Any] | None:
    """Return what a teacher's samples depend on; None without one."""
    if path is None:
        return None
    return {"weights_sha256": bundle.weights_digest(path), **bundle.load_spec(path).architecture.to_json()}


def write_history(
    out: Path, progress: Progress, parameters: dict[str, int], accelerator: Accelerator, recipe: dict[str, Any]
) -> None:
    """Write train.json, and for DVC metrics.json, curves.csv (every epoch) and errors.csv (those where actions were
    sampled: a gap would break the line). Each is whole or not there.

    train.json has the published network's figures on top, the recipe with the date, and every epoch's figures.
    """
    final = {k: v for k, v in progress.published.items() if k not in ("epoch", "step")}
    report = {
        **final,
        "published_epoch": progress.published["epoch"],
        "steps": progress.step,
        "wall_s": round(progress.wall_s, 1),
        "steps_per_s": round(progress.step / progress.wall_s, 2),
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "trainable_parameters": parameters,
        "recipe": {**recipe, "date": datetime.now(UTC).isoformat(timespec="seconds")},
        "epochs": progress.history,
        "provenance": provenance(),
    }
    write_atomic(out / "train.json", json.dumps(report, indent=2) + "\n")
    write_atomic(out / "metrics.json", json.dumps({name: report.get(name) for name in METRICS}, indent=2) + "\n")
    write_atomic(out / "curves.csv", as_csv(progress.history))
    write_atomic(out / "errors.csv", as_csv([entry for entry in progress.history if "train_action_mse" in entry]))


def as_csv(history: Sequence[dict[str, Any]]) -> str:
    """Return a line for each epoch, without the errors of single dimensions."""
    text = io.StringIO()
    columns = list(dict.fromkeys(k for e in history for k, v in e.items() if not isinstance(v, dict)))
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


if __name__ == "__main__":
    cli.run(main)
