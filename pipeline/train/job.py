"""A training from the stores to the published policy: checks, accelerator, identity, loop."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from cache.plan import differences
from cache.reader import Store, open_store
from pipeline.compute import cores
from pipeline.encode.settings import EncoderParams
from pipeline.errors import ConfigError, DataError
from pipeline.files import exclusive, require_writable
from pipeline.libero.depth import is_depth
from pipeline.memory import keep_freed_memory
from pipeline.policy import bundle
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.policy.settings import PolicyParams
from pipeline.provenance import code_digest, provenance, versions
from pipeline.train import checkpoint, curves
from pipeline.train.curves import make_trackers
from pipeline.train.data import FeatureSpec, Table, load_stores
from pipeline.train.finetune import Tower, load_tower
from pipeline.train.graphed import check_fit
from pipeline.train.instructions import learnt_texts
from pipeline.train.loop import train
from pipeline.train.publish import publish
from pipeline.train.recipe import recipe
from pipeline.train.reflow import load_teacher
from pipeline.train.settings import TrainFlow

Tasks = Mapping[str, tuple[int, ...] | None]  # of each suite, ids; None is all that its store has

# Processes wait for the main one, which alone measures the validation split. Through CLIP that can take longer than
# the ten minutes that torch allows.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Places:
    """Where a training reads and writes.

    Attributes:
        embeddings: directory of <suite>.zarr.
        demos: directory of the demonstrations; read only to tune CLIP.
        out: of the policy and its figures.
        scratch: of all trainings' checkpoints.
    """

    embeddings: Path
    demos: Path
    out: Path
    scratch: Path


def run(
    cfg: TrainFlow,
    policy: PolicyParams,
    encoder: EncoderParams,
    tasks: Tasks,
    demos_source: str,
    places: Places,
    trackers: Sequence[str],
) -> str | None:
    """Train, publish, and return what to tell; None on all processes but the main one.

    Args:
        encoder: that the stores have to be of.
        tasks: data.tasks: of each suite, those to learn from but for `cfg.held_out_tasks`.
        demos_source: where the demonstrations came from, for the recipe.
        trackers: of curves.TRACKERS.

    Raises:
        PipelineError, StoreError: before the work begins where that is possible: see what is called here.
    """
    for folder in (places.out, places.scratch):
        require_writable(folder)
    keep_freed_memory()
    accelerator = make_accelerator(cfg, trackers, places.out)
    if cfg.cuda_graph:
        check_fit(cfg, accelerator.device, accelerator.num_processes)
    stores = {suite: open_store(places.embeddings / f"{suite}.zarr") for suite in tasks}
    check_encoder(encoder, stores)
    learnt = {suite: learnt_tasks(cfg, suite, tasks[suite], store) for suite, store in stores.items()}
    table = load_stores(
        [(suite, store, learnt[suite]) for suite, store in stores.items()],
        FeatureSpec.by(policy, cfg.keyframe_weight > 0),
        cfg.action,
        cfg.data_mode,
        cfg.memory_mib,
    )
    if cfg.encoder.tune == "none":  # which reads frames, not features
        table = on_device(table, accelerator.device)
    source = next(iter(stores.values())).identity
    grid = source.get("grid")
    arch = architecture(policy, table, source)
    teacher = load_teacher(cfg, arch, source, places.out, accelerator.device)
    identity = training_identity(cfg, arch, stores, learnt)
    require_room(arch, places)
    with accelerator.main_process_first():
        scratch = checkpoint.claim(places.scratch, identity)
    told = None
    with contextlib.ExitStack() as locks:
        if accelerator.is_main_process:
            locks.enter_context(exclusive(scratch.with_suffix(".lock"), "training"))
            locks.enter_context(exclusive(places.out / "training.lock", "output"))
        tower = make_tower(encoder, cfg, table, stores, places.demos, policy.cameras)
        curves.begin(accelerator, trackers, places.out)
        network, progress = train(accelerator, table, arch, cfg, scratch, tower, teacher)
        if accelerator.is_main_process:
            made = recipe(
                cfg, policy.feature_noise, demos_source, table.episodes, source["encoder"], accelerator.device
            )
            instructions, texts = learnt_texts(stores, learnt)
            spec = bundle.PolicySpec(
                arch,
                source["encoder"],
                cfg.encoder.tune,
                grid if arch.patches else None,
                source["transform"],
                identity["data"],
                provenance(),
                made,
                instructions,
            )
            told = publish(places.out, network, spec, texts, progress, accelerator)
            checkpoint.remove(scratch)
    accelerator.end_training()
    return told


def on_device(table: Table, device: torch.device) -> Table:
    """Return the table on the device, so that the host keeps no copy. Raises ConfigError: it has no room there."""
    try:
        return table.to(device)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"the features of {len(table)} rows do not fit into the memory of {device}. Stream them: "
            "train_flow.data_mode=streaming, or a smaller train_flow.memory_mib; or learn from smaller ones: "
            "policy.features=pooled"
        ) from None


def architecture(policy: PolicyParams, table: Table, source: Mapping[str, Any]) -> Architecture:
    """Return the network for the table's rows; `source` is the identity of their store."""
    grid = source.get("grid")
    sizes = table.images.dim, table.text.shape[1], grid["size"] ** 2 if grid else None
    if "own" not in source:
        return Architecture.of(policy, *sizes)
    bounds = zip(table.action.min(0).values.tolist(), table.action.max(0).values.tolist(), strict=True)
    widths = tuple(table.proprio[name].shape[1] for name in policy.proprio)
    return Architecture.of(policy, *sizes, widths, tuple(bounds))


def require_room(arch: Architecture, places: Places) -> None:
    """Raise PipelineError if a policy or a checkpoint has no room."""
    weights = 4 * sum(parameter.numel() for parameter in PolicyNetwork(arch).parameters())
    require_writable(places.out, weights)
    require_writable(places.scratch, 4 * weights)  # of a checkpoint: also their average, and AdamW's moments


def make_accelerator(cfg: TrainFlow, trackers: Sequence[str], out: Path) -> Accelerator:
    """Return the accelerator of this process, its threads set."""
    cpu = not torch.accelerator.is_available()
    if cpu and cfg.precision == "fp16":
        raise ConfigError("train_flow.precision is fp16, which takes a GPU, and there is none. Use bf16, or 'no'")
    # Without cpu=True, Accelerate on a machine without a GPU takes several processes for as many single ones.
    accelerator = Accelerator(
        mixed_precision=cfg.precision,
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


def check_encoder(encoder: EncoderParams, stores: Mapping[str, Store]) -> None:
    """Refuse stores of another encoder than the settings name. Raises DataError."""
    for store in stores.values():
        made, asked = store.identity["encoder"], encoder.identity
        if other := differences({name: made.get(name) for name in asked}, asked):
            raise DataError(
                f"{store.location}: embed.encoder is another than the store's: {'; '.join(other)}. Set it back, or "
                "embed again: dvc repro embed"
            )


def make_tower(
    encoder: EncoderParams,
    cfg: TrainFlow,
    table: Table,
    stores: Mapping[str, Store],
    demos: Path,
    cameras: Sequence[str],
) -> Tower | None:
    """Return what training through CLIP needs; None on cached features."""
    if cfg.encoder.tune == "none":
        return None
    return load_tower(encoder, cfg, table, stores, demos, cameras)


def training_identity(cfg: TrainFlow, arch: Architecture, stores: Mapping[str, Store], learnt: Tasks) -> dict[str, Any]:
    """Return everything that the trained weights depend on, as plain JSON values. Checkpoints are filed under it."""
    first = next(iter(stores.values())).identity
    return {
        "architecture": arch.to_json(),
        "train_flow": asdict(cfg),
        "data": {
            "stores": {suite: store.fingerprint for suite, store in stores.items()},
            "tasks": dict(learnt),
            "action": cfg.action,
            "sim": first["sim"],
            **({"own": {**first["own"], "obs_shift": first["obs_shift"]}} if "own" in first else {}),
            **({"depth": first["depth"]} if any(is_depth(camera) for camera in arch.cameras) else {}),
            "teacher": teacher_identity(cfg.teacher),
        },
        "code": code_digest("policy", "train"),
        "versions": {name: versions()[name] for name in ("torch", "accelerate", "diffusers")},
    }


def learnt_tasks(cfg: TrainFlow, suite: str, chosen: tuple[int, ...] | None, store: Store) -> tuple[int, ...] | None:
    """Return the tasks of a suite to learn from; None is all that the store has.

    Raises:
        DataError: none is left.
    """
    held_out = cfg.held_out_tasks.get(suite)
    if not held_out:
        return chosen
    left = tuple(i for i in (chosen or map(int, store.texts.task_ids)) if i not in held_out)
    if not left:
        raise DataError(f"train_flow.held_out_tasks holds out every task of {suite}. Leave some to learn from")
    return left


def teacher_identity(path: str | None) -> dict[str, Any] | None:
    """Return what a teacher's samples depend on; None without one."""
    if path is None:
        return None
    return {"weights_sha256": bundle.weights_digest(path), **bundle.load_spec(path).architecture.to_json()}
