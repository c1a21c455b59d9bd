"""The training loop: the same updates whatever the number of processes, and the same after a kill.

All randomness of a step is a function of (seed, step) and the kind of device, of an epoch's order of (seed, epoch),
drawn for the whole global batch; each process takes its slice. So one process or two, interrupted or not, make the same
update, and a checkpoint needs no generator state.
"""

import logging
import math
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Int
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from pipeline.errors import DataError
from pipeline.policy.finetuned import TunedPolicy
from pipeline.policy.keyframes import Keyframes
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.train import checkpoint
from pipeline.train.curves import log_epoch
from pipeline.train.data import Table, split_by_episode
from pipeline.train.divergence import CHECK_EVERY, LossWatch, divergence
from pipeline.train.evaluation import at_once, split_metrics, straightness
from pipeline.train.finetune import Tower, parameter_groups
from pipeline.train.graphed import GraphedUpdate
from pipeline.train.plan import accumulation_steps, learning_rate_factor, row_counts, total_steps
from pipeline.train.reflow import Teacher
from pipeline.train.settings import TrainFlow
from pipeline.train.statistics import measure_once
from pipeline.train.update import Update

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a checkpoint keeps beside networks and optimiser. Registered with Accelerate."""

    epoch: int = 0  # epochs done
    step: int = 0  # optimiser steps done
    wall_s: float = 0.0  # of all sessions together
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per epoch
    published: dict[str, Any] = field(default_factory=dict)  # the last epoch, measured in full; at the end

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


@dataclass
class Training:
    """All that one training works on."""

    update: Update
    step: Update | GraphedUpdate  # makes the updates
    network: PolicyNetwork  # the one to use: the average, if one is kept
    progress: Progress
    train_rows: Int[Tensor, " N"]
    val_rows: Int[Tensor, " M"]
    watch: LossWatch

    @property
    def cfg(self) -> TrainFlow:
        """The train_flow section."""
        return self.update.cfg

    @property
    def steps(self) -> int:
        """Optimiser steps of all epochs."""
        return total_steps(self.cfg, len(self.train_rows))


def train(
    accelerator: Accelerator,
    table: Table,
    arch: Architecture,
    cfg: TrainFlow,
    scratch: Path,
    tower: Tower | None = None,
    teacher: Teacher | None = None,
) -> tuple[PolicyNetwork, Progress]:
    """Fit a policy to `table`; return the network to use and how it went.

    The network is the average if `ema_decay` keeps one; `Progress.published` tells of it, on the main process.

    Args:
        accelerator: made by the caller, which decides devices and precision.
        table: all rows, training and validation.
        arch: the network to build.
        cfg: the train_flow section.
        scratch: directory of the checkpoints of exactly this training; it goes on from the newest one there.
        tower: to train through CLIP; the network is a TunedPolicy then.
        teacher: gives the actions to learn in place of the table's; the network begins as it, if built alike.

    Raises:
        ConfigError: the global batch cannot be shared among the processes.
        DataError: there are no training rows, or values that are not finite.
        PipelineError: the loss is not finite, or no checkpoint can be read.
    """
    found = checkpoint.seen_by_all(accelerator, scratch)
    training = _prepare(accelerator, table, arch, cfg, not found, tower, teacher)
    progress = training.progress
    if checkpoint.resume(accelerator, found):
        log.info("going on after epoch %d, step %d", progress.epoch, progress.step)
    if accelerator.is_main_process:
        _log_start(training)
    for entry in progress.history:
        log_epoch(accelerator, entry)
    hidden = not accelerator.is_main_process
    with tqdm(
        total=training.steps, initial=progress.step, desc="train", unit="step", mininterval=1.0, disable=hidden
    ) as bar:
        while progress.epoch < cfg.epochs:
            _run_epoch(training, bar)
            if progress.epoch == cfg.epochs or progress.epoch % cfg.checkpoint_every_epochs == 0:
                checkpoint.save(accelerator, scratch, progress.step)
    if accelerator.is_main_process:
        _publish(training)
    return training.network, progress


def _publish(training: Training) -> None:
    """Note the last epoch's figures; its actions were sampled, and how straight the flow's paths are is asked now."""
    cfg, progress = training.cfg, training.progress
    bent = straightness(
        training.network, training.update.table, training.val_rows, cfg.metrics_rows, cfg.seed, at_once(cfg)
    )
    progress.published = {**progress.history[-1], "val_straightness": bent}


def _prepare(
    accelerator: Accelerator,
    table: Table,
    arch: Architecture,
    cfg: TrainFlow,
    afresh: bool,
    tower: Tower | None,
    teacher: Teacher | None,
) -> Training:
    """Make network, optimiser, schedule and average, and register what a checkpoint has to hold.

    Statistics are measured only `afresh`: a checkpoint has them.
    """
    train_rows, val_rows = split_by_episode(table.episodes, cfg.val_fraction, cfg.seed)
    if len(train_rows) == 0:
        raise DataError("the store has no training rows. Record more demonstrations: demos.episodes")
    torch.manual_seed(cfg.seed)
    network = TunedPolicy(arch, tower.visual, tower.preprocess) if tower else PolicyNetwork(arch)
    if (table.keyframes is None) != (cfg.keyframe_weight == 0):
        raise ValueError(f"keyframe_weight is {cfg.keyframe_weight}: read keyframes into the table for it alone")
    statistics = measure_once(accelerator, table, train_rows) if afresh else None
    if statistics:
        network.normaliser.fit(statistics.images, statistics.proprio, statistics.action)
    if teacher and teacher.start(network):
        log.info("the network begins with its teacher's weights")
    if table.keyframes is not None:  # added now: no bundle, and so no teacher, has any
        network.keyframes = Keyframes(arch.condition_dim, cfg.keyframe_weight)
        if statistics and statistics.keyframes:
            network.keyframes.standardise.fit(statistics.keyframes)
    if tower:
        table = replace(table, images=tower.frames)
    accumulation = accumulation_steps(cfg, accelerator.num_processes)
    optimizer = torch.optim.AdamW(
        parameter_groups(network, cfg),
        lr=cfg.learning_rate,
        weight_decay=cfg.weight_decay,
        fused=True,
        capturable=cfg.cuda_graph,
    )
    total = total_steps(cfg, len(train_rows))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, total, cfg.warmup_steps)
    )
    model, optimizer = accelerator.prepare(network, optimizer)
    average = None
    if cfg.ema_decay:
        average = AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay))
    progress = Progress()
    accelerator.register_for_checkpointing(scheduler, progress, *([] if average is None else [average]))
    update = Update(
        accelerator,
        model,
        optimizer,
        scheduler,
        average,
        table.to(accelerator.device),
        arch,
        cfg,
        accumulation,
        teacher,
    )
    used = network if average is None else average.module
    assert isinstance(used, PolicyNetwork)
    watch = LossWatch(accelerator.device)
    step = GraphedUpdate(update) if cfg.cuda_graph else update
    return Training(update, step, used, progress, train_rows, val_rows, watch)


def _run_epoch(training: Training, bar: tqdm) -> None:
    """Step through every training row once, then measure; note both in the history."""
    cfg, progress, accelerator = training.cfg, training.progress, training.update.accelerator
    started = time.monotonic()
    loss = _step_through(training, bar)
    sampled = progress.epoch + 1 == cfg.epochs or progress.epoch % cfg.metrics_every_epochs == 0
    measured: list[dict[str, Any]] = [{}]
    if accelerator.is_main_process:
        rows = training.train_rows, training.val_rows
        measured = [split_metrics(training.network, training.update.table, *rows, cfg, sampled)]
    broadcast_object_list(measured)  # all processes must take the same decisions
    entry = {"epoch": progress.epoch, "step": progress.step, "train_loss": loss, **measured[0]}
    progress.history.append(entry)
    log_epoch(accelerator, entry)
    progress.epoch += 1
    seconds = time.monotonic() - started
    progress.wall_s += seconds
    rate = len(training.train_rows) / seconds
    bar.set_postfix_str(
        f"epoch {progress.epoch}/{cfg.epochs} in {seconds:.2f} s, {rate:.0f} samples/s, loss {loss:.4f}", refresh=False
    )


def _step_through(training: Training, bar: tqdm) -> float:
    """Make an epoch's updates; return the mean loss over all rows and processes."""
    update, cfg, progress, watch = training.update, training.cfg, training.progress, training.watch
    counts = row_counts(training.train_rows, update.table.tasks(), cfg.balance, cfg.seed, progress.epoch)
    end = progress.step + math.ceil(len(training.train_rows) / cfg.batch_size)
    total = torch.zeros((), device=update.accelerator.device)
    recent: deque[tuple[int, Tensor]] = deque(maxlen=CHECK_EVERY)
    for rows, images in update.table.images.epoch(counts, cfg.batch_size, cfg.seed, progress.epoch):
        loss = training.step(rows, images, progress.step)
        watch.add(loss, progress.step)
        recent.append((progress.step, rows))
        total += loss
        progress.step += 1
        bar.update()
        if (progress.step == end or watch.due(progress.step)) and (bad := watch.first()) is not None:
            raise divergence(update.table, dict(recent)[bad], bad, progress.epoch)
    reduced = update.accelerator.reduce(total)
    assert isinstance(reduced, Tensor)
    return float(reduced) / len(training.train_rows)


def _log_start(training: Training) -> None:
    accelerator, cfg = training.update.accelerator, training.cfg
    log.info(
        "device %s x %d, precision %s, %s trainable parameters",
        accelerator.device.type,
        accelerator.num_processes,
        accelerator.mixed_precision,
        f"{training.network.parameter_counts()['total']:,}",
    )
    log.info(
        "%d training and %d validation rows; %d epochs, %d steps of %d rows, accumulation %d",
        len(training.train_rows),
        len(training.val_rows),
        cfg.epochs,
        training.steps,
        cfg.batch_size,
        training.update.accumulation,
    )
