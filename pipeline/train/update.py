"""One optimiser step on a global batch, shared among processes and microbatches."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.config import TrainFlow
from pipeline.policy.network import ACTION_DIM, Architecture
from pipeline.train.data import Table
from pipeline.train.images import Features
from pipeline.train.plan import step_seed
from pipeline.train.teacher import Teacher


@dataclass(frozen=True)
class Update:
    """Calling it makes one optimiser step, on all processes together."""

    accelerator: Accelerator
    model: nn.Module  # as prepared by the accelerator
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    average: AveragedModel | None
    table: Table
    arch: Architecture
    cfg: TrainFlow
    feature_noise: float
    accumulation: int  # forward passes per process
    teacher: Teacher | None = None

    def __call__(self, rows: Int[Tensor, " B"], images: Features | None, step: int) -> Float[Tensor, ""]:
        """Update on the global batch `rows`; return the sum of this process's losses.

        `images` are the features of all of it, if they were read already.
        """
        accelerator = self.accelerator
        noises, times, spreads = self._draw(len(rows), step)
        total = torch.zeros((), device=accelerator.device)
        for part, weight, sync in self._parts(len(rows)):
            features = images and {name: x[part.to(x.device)] for name, x in images.items()}
            batch = self.table.batch(rows[part], self.arch.horizon, features)
            noise, u = noises[part].to(accelerator.device), times[part].to(accelerator.device)
            extra = spreads and {name: x[part].to(accelerator.device) for name, x in spreads.items()}
            actions = batch.actions
            if self.teacher is not None:
                actions, u = self.teacher.actions(batch, noise), self.teacher.times(u)
            with sync, accelerator.autocast():
                losses = self.model(batch.images, batch.text, batch.proprio, actions, noise, u, extra)
                loss = losses.sum() * weight
                # DDP averages gradients over processes; the global batch's mean wants their sum over its rows.
                accelerator.backward(loss * (accelerator.num_processes / len(rows)))
            total += loss.detach()
        accelerator.clip_grad_norm_(self.model.parameters(), self.cfg.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(accelerator.unwrap_model(self.model))
        return total

    def _parts(self, size: int) -> Iterator[tuple[Tensor, float, contextlib.AbstractContextManager]]:
        """Yield this process's microbatches of a global batch: positions, weight, gradient synchronisation.

        A last batch smaller than the number of parts leaves some empty: they take part with weight zero.
        """
        first = self.accelerator.process_index * self.accumulation
        parts = torch.arange(size).tensor_split(self.accelerator.num_processes * self.accumulation)
        for k in range(self.accumulation):
            part = parts[first + k]
            last = k == self.accumulation - 1
            sync = contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)
            yield (part, 1.0, sync) if len(part) else (torch.zeros(1, dtype=torch.int64), 0.0, sync)

    def _draw(self, size: int, step: int) -> tuple[Tensor, Tensor, dict[str, Tensor] | None]:
        """Return noise, times and feature noise of the whole global batch, a function of (seed, step) alone."""
        generator = torch.Generator().manual_seed(step_seed(self.cfg.seed, step))
        noise = torch.randn(size, self.arch.horizon, ACTION_DIM, generator=generator)
        u = torch.rand(size, generator=generator)
        if self.feature_noise == 0:
            return noise, u, None
        spread = self.feature_noise
        return (
            noise,
            u,
            {
                camera: spread * torch.randn(size, *self.arch.image_shape, generator=generator)
                for camera in self.arch.cameras
            },
        )
