"""Train the project's own CLIP on pictures of scenes; interruptible, the same weights each time on one machine."""

import contextlib
import csv
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from pipeline.compute import cores
from pipeline.encode import own
from pipeline.encode.preprocess import Preprocess
from pipeline.encode.weights import load_tokenizer
from pipeline.errors import ConfigError
from pipeline.files import exclusive, write_atomic
from pipeline.libero.sim.simulator import CAMERAS
from pipeline.pretrain.batches import Batches, to
from pipeline.pretrain.captions import CHANGES
from pipeline.pretrain.data import Samples, load
from pipeline.pretrain.model import SCALE_M, TEMPERATURE, Pretraining
from pipeline.pretrain.settings import PretrainParams
from pipeline.provenance import code_digest, provenance, versions
from pipeline.scenes.store import HELD_OUT, TRAIN, Pictures
from pipeline.train import checkpoint

log = logging.getLogger(__name__)

CODE = (
    *("scenes/facts.py", "scenes/sentences.py", "scenes/words.py"),
    *("libero/paraphrase.py", "encode/preprocess.py", "encode/augment.py", "encode/own.py"),
)
"""Beside this package, what batches are made by."""
CLIP_NORM = 1.0
RELATION, PLACES = (CHANGES.index(name) for name in ("relation", "places"))
CHECKED = 1024  # held out pictures that the curves are of
BATCH = 128  # of an evaluation
DECAYED_DIMENSIONS = 2  # of weights with as many, at least


@dataclass
class Progress:
    """What a checkpoint keeps beside weights and optimiser. Registered with Accelerate."""

    step: int = 0
    wall_s: float = 0.0
    history: list[dict[str, int | float]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def run(cfg: PretrainParams, scenes: Path, scratch: Path, out: Path) -> dict[str, int | float]:
    """Train, and write weights, recipe and curves to `out`; return the last line of the curves.

    What is there already, made of the same, is left as it is.

    Raises:
        ConfigError: the batch can't be shared among the processes, or `out` has the weights that are begun with.
        AssetError: those are damaged or not there.
        DataError: there are no pictures, or another process is at the same training.
    """
    if cfg.pretrained is not None and Path(cfg.pretrained).resolve() == out.resolve():
        raise ConfigError(f"--out {out}: has the weights that pretrain_clip.pretrained names. Give another directory")
    accelerator = Accelerator(
        mixed_precision="bf16" if cfg.precision == "bf16" else "no", cpu=not torch.cuda.is_available()
    )
    if accelerator.device.type == "cpu":
        torch.set_num_threads(max(1, cores() // accelerator.num_processes))
    identity = {
        "pretrain_clip": {**asdict(cfg), "pretrained": _recipe(cfg.pretrained)},
        "scenes": Pictures(scenes).fingerprint,
        "architecture": json.loads(own.CONFIG.read_text()),
        "vocabulary": hashlib.sha256(own.VOCABULARY.read_bytes()).hexdigest(),
        "code": code_digest("pretrain", *CODE),
        "versions": {name: versions()[name] for name in ("torch", "open_clip_torch")},
    }
    if (last := _made(out, identity)) is not None:
        log.info("%s: up to date", out)
        return last
    with accelerator.main_process_first():
        work = checkpoint.claim(scratch, identity)
    with contextlib.ExitStack() as locks:
        if accelerator.is_main_process:
            locks.enter_context(exclusive(work.with_suffix(".lock"), "training"))
        return _run(accelerator, cfg, scenes, work, out, identity)


def _recipe(pretrained: str | None) -> dict[str, Any] | None:
    """Return digest and identity of the weights that are begun with."""
    if pretrained is None:
        return None
    own.weights(Path(pretrained))
    recipe = json.loads((Path(pretrained) / own.RECIPE.name).read_text())
    return {"sha256": recipe["sha256"], "identity": recipe["identity"]}


def _made(out: Path, identity: dict[str, Any]) -> dict[str, int | float] | None:
    """Return the last figures of the weights in `out`, if they were made of the same and are whole."""
    try:
        recipe = json.loads((out / own.RECIPE.name).read_text())
        sha256 = hashlib.sha256((out / own.WEIGHTS.name).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None
    same = recipe["identity"] == json.loads(json.dumps(identity)) and recipe["sha256"] == sha256
    return recipe["held_out"] if same else None


def _run(
    accelerator: Accelerator, cfg: PretrainParams, scenes: Path, work: Path, out: Path, identity: dict[str, Any]
) -> dict[str, int | float]:
    model = make_model(cfg)
    preprocess = Preprocess.from_open_clip(model.clip.visual.preprocess_cfg)
    tokenizer = load_tokenizer(own.MODEL)
    learnt, held_out = (load(scenes, [split], model.side) for split in (TRAIN, HELD_OUT))
    log.info("%d states learnt from, %d held out, on %s", len(learnt), len(held_out), accelerator.device)
    batches = Batches(learnt, preprocess, tokenizer, cfg.seed)
    checks = Batches(held_out, preprocess, tokenizer, cfg.seed)
    trained = _train(accelerator, cfg, model, batches, checks, held_out, work)
    if accelerator.is_main_process:
        publish(out, trained[0].clip, cfg, identity, trained[1])
        checkpoint.remove(work)
    accelerator.end_training()
    return trained[1].history[-1]


def make_model(cfg: PretrainParams) -> Pretraining:
    """Return the model with random weights, the same for the same seed, or with those that are begun with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        logging.disable(logging.ERROR)  # open_clip warns that no weights were loaded
        try:
            clip = open_clip.create_model(own.MODEL)
        finally:
            logging.disable(logging.NOTSET)
        torch.nn.init.constant_(clip.logit_scale, math.log(TEMPERATURE))
        if cfg.pretrained is not None:
            clip.load_state_dict(load_file(own.weights(Path(cfg.pretrained))))
        return Pretraining(clip, len(CAMERAS), cfg.lock_image)


def _train(
    accelerator: Accelerator,
    cfg: PretrainParams,
    model: Pretraining,
    batches: Batches,
    checks: Batches,
    held_out: Samples,
    work: Path,
) -> tuple[Pretraining, Progress]:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay))
    average.to(accelerator.device)
    optimizer = torch.optim.AdamW(_groups(model, cfg.weight_decay), lr=cfg.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, cfg))
    prepared, optimizer = accelerator.prepare(model, optimizer)
    averaged: Any = average.module
    progress = Progress()
    accelerator.register_for_checkpointing(average, schedule, progress)
    checkpoint.resume(accelerator, checkpoint.seen_by_all(accelerator, work))
    share, left = divmod(cfg.batch_size, accelerator.num_processes)
    if left:
        raise ConfigError(
            f"pretrain_clip.batch_size is {cfg.batch_size}, which {accelerator.num_processes} processes cannot share "
            "evenly. Give a multiple"
        )
    started, before = time.monotonic(), progress.wall_s
    losses: dict[str, torch.Tensor] = {}
    for step in _steps(progress.step, cfg.steps, accelerator.is_local_main_process):
        batch = to(batches.draw(step, share, accelerator.process_index), accelerator.device)
        with accelerator.autocast():
            found = prepared(batch)
        accelerator.backward(found["loss"])
        accelerator.clip_grad_norm_(prepared.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.update_parameters(accelerator.unwrap_model(prepared))
        losses = {name: losses.get(name, 0) + value.detach() for name, value in found.items()}
        progress.step, progress.wall_s = step + 1, before + time.monotonic() - started
        if progress.step % cfg.evaluate_every == 0 or progress.step == cfg.steps:
            since = (progress.step - 1) % cfg.evaluate_every + 1
            entry = {"step": progress.step, "wall_s": round(progress.wall_s, 1)}
            entry |= {name: round(float(value) / since, 5) for name, value in losses.items()}
            entry |= check(averaged, checks, held_out, accelerator.device)
            progress.history.append(entry)
            if accelerator.is_main_process:
                log.info("%s", " ".join(f"{name} {value:g}" for name, value in entry.items()))
            losses = {}
            checkpoint.save(accelerator, work, progress.step)
    return averaged, progress


def _steps(first: int, last: int, shown: bool) -> Iterator[int]:
    return iter(
        tqdm(range(first, last), initial=first, total=last, desc="pretrain_clip", unit="step", disable=not shown)
    )


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameters in two groups: matrices decay, biases, norms and scales do not."""
    groups: tuple[list[Any], list[Any]] = [], []
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        groups[parameter.ndim >= DECAYED_DIMENSIONS].append(parameter)
    return [{"params": groups[1], "weight_decay": weight_decay}, {"params": groups[0], "weight_decay": 0.0}]


def _factor(step: int, cfg: PretrainParams) -> float:
    """Return the share of the learning rate: a rise, then half a cosine."""
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    done = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    return 0.5 * (1 + float(np.cos(np.pi * min(done, 1))))


@torch.no_grad()
def check(model: Pretraining, batches: Batches, samples: Samples, device: torch.device) -> dict[str, int | float]:
    """Return figures of pictures held out: relations told from changed ones, errors of places in centimetres."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(samples))[:CHECKED]
    rows = rows[samples.sayable[rows, 0]]
    right, near, far = [], [], []
    for some in np.array_split(rows, max(1, len(rows) // BATCH)):
        batch = to(batches.of(some, np.zeros_like(some), rng), device)
        pooled, tokens = model.see(batch.images)
        texts = model.read(batch.text)
        cosine = torch.nn.functional.normalize(pooled, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
        margin = cosine[:, : len(some)].diagonal() - cosine[:, len(some) :].diagonal()
        right.append((margin > 0)[(batch.changed == RELATION) | (batch.changed == PLACES)])
        seen = model.of_tokens[0](tokens.flatten(1)) * SCALE_M
        near.append((seen[:, -4:-1] - batch.hand[:, :3]).norm(dim=-1))
        far.append((seen[:, :-4].unflatten(1, (-1, 3)) - batch.place).norm(dim=-1).flatten())
    told = {"held_out/one_relation_changed": round(float(torch.cat(right).float().mean()), 4)}
    if model.locked:  # whose heads, that tell places, learn nothing
        return told
    places = torch.cat(far)
    return told | {
        "held_out/place_cm": round(float(places[~places.isnan()].mean()) * 100, 3),
        "held_out/gripper_cm": round(float(torch.cat(near).mean()) * 100, 3),
    }


def publish(out: Path, clip: Any, cfg: PretrainParams, identity: dict[str, Any], progress: Progress) -> None:
    """Write the weights in half precision, what they were made of, and the curves."""
    weights = {name: value.detach().cpu().half().contiguous() for name, value in clip.state_dict().items()}
    content = save(weights, {"activation": "gelu"})  # one entry: of more, the order would differ from run to run
    recipe = {
        "model": own.MODEL,
        "sha256": hashlib.sha256(content).hexdigest(),
        "identity": identity,
        "seconds": round(progress.wall_s),
        "held_out": progress.history[-1],
        "provenance": provenance(),
    }
    write_atomic(out / own.WEIGHTS.name, content)
    write_atomic(out / own.RECIPE.name, json.dumps(recipe, indent=1) + "\n")
    with (out / "curves.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(progress.history[-1]))
        writer.writeheader()
        writer.writerows(progress.history)
