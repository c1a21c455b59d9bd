"""Training through CLIP: raw frames in, the image tower tuned with the policy, by LoRA or whole.

The rest is as with cached features: the same table, fusion and heads, the same loop. The store is still needed: it says
which frames are rows, holds the low-dimensional arrays and the instructions' features, which stay as they are, and its
features give the normaliser's statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.reader import Store
from pipeline.data.demos import Demo, digest, read, scan, tasks
from pipeline.encode.preprocess import Preprocess
from pipeline.encode.settings import EncoderParams
from pipeline.errors import ConfigError, DataError
from pipeline.policy.network import PolicyNetwork
from pipeline.train.data import Table
from pipeline.train.images import MIB, ResidentImages
from pipeline.train.settings import TrainFlow, TuneEncoder

ADAPTED = ["attn", "c_fc", "c_proj"]  # every matrix of an open_clip transformer block


def parameter_groups(network: PolicyNetwork, cfg: TrainFlow) -> list[dict[str, Any]]:
    """Return what the optimiser is to train: the policy, and the image tower at a rate of its own, if there is one."""
    own: list[nn.Parameter] = []
    tower: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (tower if name.startswith("visual.") else own).append(parameter)
    return [{"params": own}, *([{"params": tower, "lr": cfg.encoder.learning_rate}] if tower else [])]


@dataclass(frozen=True)
class Tower:
    """What training through CLIP adds: the tower, prepared for it, and the frames of the table's rows."""

    visual: nn.Module
    preprocess: Preprocess
    frames: ResidentImages


def load_tower(
    encoder: EncoderParams,
    cfg: TrainFlow,
    table: Table,
    stores: Mapping[str, Store],
    root: Path,
    cameras: Sequence[str],
) -> Tower:
    """Return the image tower as `cfg.encoder` asks for it, and the frames.

    Args:
        encoder: that the stores' features are of.
        table: made of `stores`.
        stores: by suite.
        root: directory of the demonstrations that were embedded.

    Raises:
        ConfigError: LoRA on a tower without transformer blocks, or frames that take more than `cfg.memory_mib`.
        DataError: the weights or a demonstration are not those that were embedded.
    """
    identity = next(iter(stores.values())).identity["encoder"]
    visual, preprocess = _visual(encoder, cfg.encoder, identity, cfg.seed)
    return Tower(visual, preprocess, ResidentImages(_frames(table, stores, root, cameras, cfg.memory_mib)))


def _visual(
    encoder: EncoderParams, tune: TuneEncoder, identity: Mapping[str, Any], seed: int
) -> tuple[nn.Module, Preprocess]:
    from open_clip.transformer import VisionTransformer  # these take seconds to import
    from peft import LoraConfig, get_peft_model

    from pipeline.encode.weights import load_model, weights_sha256

    model: Any = load_model(encoder)
    if (found := weights_sha256(model)) != identity["weights_sha256"]:
        raise DataError(
            f"embed.encoder: the weights of {encoder.model} {encoder.pretrained} are {found[:12]}, the store's are "
            f"{identity['model']} {identity['pretrained']} {identity['weights_sha256'][:12]}. Set them back, or embed "
            "again: dvc repro embed"
        )
    visual = model.visual
    preprocess = Preprocess.from_open_clip(visual.preprocess_cfg)
    if tune.gradient_checkpointing:
        visual.set_grad_checkpointing(True)
    if tune.tune == "full":
        return visual.requires_grad_(True), preprocess
    if not isinstance(visual, VisionTransformer):
        raise ConfigError(
            f"train_flow.encoder.tune is lora, but {encoder.model} has no transformer blocks of open_clip's own "
            f"({type(visual).__name__}). Use another model, or tune: full"
        )
    torch.manual_seed(seed)
    lora = LoraConfig(r=tune.lora_rank, lora_alpha=2 * tune.lora_rank, target_modules=ADAPTED)
    return get_peft_model(visual, lora), preprocess


def _frames(
    table: Table, stores: Mapping[str, Store], root: Path, cameras: Sequence[str], memory_mib: int
) -> dict[str, Tensor]:
    demos: dict[tuple[str, str], tuple[Demo, str]] = {}
    for suite, store in stores.items():
        chosen = tasks(root, suite, sorted({e.task for e in table.episodes if e.suite == suite}))
        found = {demo.source: demo for demo in scan(root, suite, chosen, cameras)[0]}
        for source, expected in zip(store.episodes.source, store.episodes.digest, strict=True):
            if source in found:
                demos[suite, source] = (found[source], expected)
    frames: dict[str, Tensor] = {}
    for episode in table.episodes:
        if (episode.suite, episode.source) not in demos:
            raise DataError(
                f"{root / episode.suite}: {episode.source} was embedded, but is not there, or damaged. "
                "Run: dvc repro demos embed"
            )
        demo, expected = demos[episode.suite, episode.source]
        if digest(demo) != expected:
            raise DataError(f"{demo.file} {demo.name}: is not what was embedded. Embed again: dvc repro embed")
        images = read(demo, cameras, 0, episode.length)["images"]
        frames = frames or _allocate(images, len(table), memory_mib)
        for camera, values in images.items():
            frames[camera][episode.first : episode.first + episode.length] = torch.from_numpy(values)
    return frames


def _allocate(images: Mapping[str, np.ndarray], rows: int, memory_mib: int) -> dict[str, Tensor]:
    size = sum(rows * values[0].nbytes for values in images.values()) / MIB
    if size > memory_mib:
        raise ConfigError(
            f"train_flow.memory_mib is {memory_mib}, the frames take {size:.0f} MiB. Raise it, or choose fewer tasks: "
            "data.tasks"
        )
    return {camera: torch.empty(rows, *values.shape[1:], dtype=torch.uint8) for camera, values in images.items()}
