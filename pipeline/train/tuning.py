"""Load what training through CLIP needs: the image tower, and raw frames."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transformer import VisionTransformer
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from cache.reader import Store
from pipeline.config import EncoderParams, TrainFlow, TuneEncoder
from pipeline.encode.source import source_name
from pipeline.encode.transform import Preprocess
from pipeline.encode.weights import load_model, weights_sha256
from pipeline.errors import ConfigError, DataError
from pipeline.libero.demonstrations import Demo, digest, read, scan
from pipeline.libero.suites import tasks
from pipeline.train.data import Table
from pipeline.train.images import MIB, ResidentImages
from pipeline.train.tower import Tower

ADAPTED = ["attn", "c_fc", "c_proj"]  # every matrix of an open_clip transformer block


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
        chosen = tasks(suite, sorted({e.task for e in table.episodes if e.suite == suite}))
        found = {source_name(demo): demo for demo in scan(root, suite, chosen, cameras)[0]}
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
