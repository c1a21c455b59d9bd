"""The training loop: the same updates whatever the number of processes, and the same after a kill.

All randomness of a step is a function of (seed, step), of an epoch's order of (seed, epoch), drawn for the whole global
batch on the CPU; each process takes its slice. So one process or two, interrupted or not, make the same update, and a
checkpoint needs no generator state.
"""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from pipeline.config import TrainFlow
from pipeline.errors import DataError, PipelineError
from pipeline.policy.network import Architecture, FlowPolicy
from pipeline.train import checkpoint
from pipeline.train.data import ResidentData, split_by_episode
from pipeline.train.evaluation import split_metrics
from pipeline.train.plan import accumulation_steps, epoch_batches, learning_rate_factor
from pipeline.train.update import Update

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a checkpoint keeps beside networks and optimiser. Registered with Accelerate."""

    epoch: int = 0  # epochs done
    step: int = 0  # optimiser steps done
    wall_s: float = 0.0  # of all sessions together
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per epoch

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def train(
    accelerator: Accelerator,
    data: ResidentData,
    arch: Architecture,
    cfg: TrainFlow,
    feature_noise: float,
    scratch: Path,
) -> tuple[FlowPolicy, Progress]:
    """Fit a policy to `data`; return the network to use (the average, if one is kept) and how it went.

    Args:
        accelerator: made by the caller, which decides devices and precision.
        data: all rows, training and validation.
        arch: the network to build.
        cfg: the train_flow section.
        feature_noise: std of Gaussian noise on standardised image features.
        scratch: directory of the checkpoints of exactly this training; it goes on from the newest one there.

    Raises:
        ConfigError: the global batch cannot be shared among the processes.
        DataError: there are no training rows.
        PipelineError: the loss is not finite, or no checkpoint can be read.
    """
    train_rows, val_rows = split_by_episode(data.episodes, cfg.val_fraction, cfg.seed)
    if len(train_rows) == 0:
        raise DataError("the store has no training rows. Record more demonstrations: demos.episodes")
    torch.manual_seed(cfg.seed)
    network = FlowPolicy(arch)
    network.normaliser.fit(
        {name: x[train_rows] for name, x in data.images.items()},
        {name: x[train_rows] for name, x in data.proprio.items()},
        data.action[train_rows],
    )
    progress = Progress()
    update = _prepare(accelerator, network, data.to(accelerator.device), cfg, feature_noise, len(train_rows), progress)
    if checkpoint.resume(accelerator, scratch):
        log.info("going on after epoch %d, step %d", progress.epoch, progress.step)
    used = network if update.average is None else update.average.module
    assert isinstance(used, FlowPolicy)
    total = cfg.epochs * math.ceil(len(train_rows) / cfg.batch_size)
    hidden = not accelerator.is_main_process
    if accelerator.is_main_process:
        _log_start(accelerator, network, len(train_rows), len(val_rows), cfg, total, update.accumulation)
    with tqdm(total=total, initial=progress.step, desc="train", unit="step", mininterval=1.0, disable=hidden) as bar:
        while progress.epoch < cfg.epochs:
            started = time.monotonic()
            loss = _run_epoch(update, train_rows, progress, bar)
            if not math.isfinite(loss):
                raise PipelineError(
                    f"the loss of epoch {progress.epoch} is {loss}. Checkpoints before it are in {scratch}. Lower "
                    "train_flow.learning_rate, or check the store: python -m cache verify STORE"
                )
            last = progress.epoch + 1 == cfg.epochs
            sample = last or progress.epoch % cfg.metrics_every_epochs == 0
            entry = {"epoch": progress.epoch, "step": progress.step, "train_loss": loss}
            entry |= split_metrics(used, update.data, train_rows, val_rows, cfg, sample)
            progress.history.append(entry)
            progress.epoch += 1
            progress.wall_s += time.monotonic() - started
            bar.set_postfix_str(f"epoch {progress.epoch}/{cfg.epochs}, loss {loss:.4f}", refresh=False)
            if last or progress.epoch % cfg.checkpoint_every_epochs == 0:
                checkpoint.save(accelerator, scratch, progress.step)
    return used, progress


def _prepare(
    accelerator: Accelerator,
    network: FlowPolicy,
    data: ResidentData,
    cfg: TrainFlow,
    feature_noise: float,
    train_rows: int,
    progress: Progress,
) -> Update:
    """Make optimiser, schedule and average, and register what a checkpoint has to hold."""
    accumulation = accumulation_steps(cfg, accelerator.num_processes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
    total = cfg.epochs * math.ceil(train_rows / cfg.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, total, cfg.warmup_steps, cfg.schedule)
    )
    model, optimizer = accelerator.prepare(network, optimizer)
    average = None
    if cfg.ema_decay:
        average = AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay))
    accelerator.register_for_checkpointing(scheduler, progress, *([] if average is None else [average]))
    return Update(
        accelerator, model, optimizer, scheduler, average, data, network.arch, cfg, feature_noise, accumulation
    )


def _run_epoch(update: Update, train_rows: Int[Tensor, " N"], progress: Progress, bar: tqdm) -> float:
    """Step through every training row once; return the epoch's mean loss over all processes."""
    cfg = update.cfg
    loss = torch.zeros((), device=update.accelerator.device)
    for rows in epoch_batches(train_rows, cfg.batch_size, cfg.seed, progress.epoch):
        loss += update(rows, progress.step)
        progress.step += 1
        bar.update()
    total = update.accelerator.reduce(loss)
    assert isinstance(total, Tensor)
    return float(total) / len(train_rows)


def _log_start(
    accelerator: Accelerator,
    network: FlowPolicy,
    train_rows: int,
    val_rows: int,
    cfg: TrainFlow,
    total: int,
    accumulation: int,
) -> None:
    log.info(
        "device %s x %d, precision %s, %s trainable parameters",
        accelerator.device.type,
        accelerator.num_processes,
        accelerator.mixed_precision,
        f"{network.parameter_counts()['total']:,}",
    )
    log.info(
        "%d training and %d validation rows; %d epochs, %d steps of %d rows, accumulation %d",
        train_rows,
        val_rows,
        cfg.epochs,
        total,
        cfg.batch_size,
        accumulation,
    )
