"""One optimiser step on a global batch, shared among processes and microbatches."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.policy.network import Architecture
from pipeline.policy.normaliser import Noise
from pipeline.train.data import Table
from pipeline.train.images import Features
from pipeline.train.plan import step_seed
from pipeline.train.reflow import Teacher
from pipeline.train.settings import TrainFlow


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
    accumulation: int  # forward passes per process
    teacher: Teacher | None = None

    def __call__(self, rows: Int[Tensor, " B"], images: Features | None, step: int) -> Float[Tensor, ""]:
        """Update on the global batch `rows`; return the sum of this process's losses.

        `images` are the features of all of it, if they were read already.
        """
        size, random = len(rows), self.draw(len(rows), step)
        total = torch.zeros((), device=self.accelerator.device)
        if self.table.action.is_cuda and images is None:
            rows = rows.pin_memory().to(total.device, non_blocking=True)  # which does not wait for the step before
        for part, weight, sync in self._parts(size):
            with sync:
                if len(part) == size:
                    total += self.backward(rows, images, random, weight, size)
                    continue
                features = images and {name: x[part.to(x.device)] for name, x in images.items()}
                total += self.backward(rows[part.to(rows.device)], features, random.at(part), weight, size)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.cfg.clip_norm)
        self.optimizer.step()
        stepped = not self.accelerator.optimizer_step_was_skipped  # fp16 leaves out a step whose gradients overflow
        if stepped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        if stepped and self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        return total

    def backward(
        self, rows: Int[Tensor, " B"], images: Features | None, random: "RandomNumbers", weight: float, size: int
    ) -> Float[Tensor, ""]:
        """Add the gradient of these rows' part of the mean loss of `size` rows; return their sum, times `weight`."""
        accelerator = self.accelerator
        batch = self.table.batch(rows, self.arch.horizon, images, random.views)
        noise, u = random.noise, random.u
        extra = None
        if random.levels is not None:
            extra = {name: Noise.of(x, self.arch.feature_noise) for name, x in random.levels.items()}
        actions = batch.actions if self.teacher is None else self.teacher.actions(batch, noise)
        with accelerator.autocast():
            losses = self.model(batch.images, batch.text, batch.proprio, actions, noise, u, extra, batch.keyframes)
            loss = losses.sum() * weight
            # DDP averages gradients over processes; the global batch's mean wants their sum over its rows.
            accelerator.backward(loss * (accelerator.num_processes / size))
        return loss.detach()

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

    def draw(self, size: int, step: int) -> "RandomNumbers":
        """Return a global batch's noise, times, views and levels of feature noise.

        They are a function of (seed, step) and the kind of device, and drawn there.
        """
        device = self.accelerator.device
        generator = torch.Generator(device).manual_seed(step_seed(self.cfg.seed, step))
        noise = torch.randn(size, self.arch.horizon, self.arch.action_dim, generator=generator, device=device)
        u = torch.rand(size, generator=generator, device=device)
        views = None
        if (count := self.table.images.views) > 1:
            time = () if self.table.past is None else (self.arch.n_obs_steps,)
            views = draw_views(count, self.arch.cameras, (size, *time), generator)
        if self.arch.feature_noise == 0:
            return RandomNumbers(noise, u, views, None)
        shape = (size, *self.arch.image_shape)
        return RandomNumbers(noise, u, views, {c: noise_levels(shape, generator) for c in self.arch.cameras})


@dataclass(frozen=True)
class RandomNumbers:
    """What is random in a batch of B rows: a flow's noise and times, the views to see, levels of feature noise."""

    noise: Float[Tensor, "B H A"]
    u: Float[Tensor, " B"]
    views: dict[str, Int[Tensor, "B *time"]] | None
    levels: dict[str, Int8[Tensor, "B *shape"]] | None

    def at(self, part: Int[Tensor, " b"]) -> "RandomNumbers":
        """Return that of some of the rows."""
        part = part.to(self.u.device)
        views = self.views and {name: x[part] for name, x in self.views.items()}
        levels = self.levels and {name: x[part] for name, x in self.levels.items()}
        return RandomNumbers(self.noise[part], self.u[part], views, levels)

    def to(self, device: torch.device) -> "RandomNumbers":
        """Return all of it on `device`."""
        views = self.views and {name: x.to(device) for name, x in self.views.items()}
        levels = self.levels and {name: x.to(device) for name, x in self.levels.items()}
        return RandomNumbers(self.noise.to(device), self.u.to(device), views, levels)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, in an order of their own."""
        return self.noise, self.u, *(self.views or {}).values(), *(self.levels or {}).values()


def draw_views(
    count: int, cameras: Sequence[str], shape: Sequence[int], generator: torch.Generator
) -> dict[str, Int[Tensor, "*shape"]]:
    """Return numbers of views, 0 to `count` - 1, for each camera by itself."""
    return {
        camera: torch.randint(count, tuple(shape), generator=generator, device=generator.device) for camera in cameras
    }


def noise_levels(shape: Sequence[int], generator: torch.Generator) -> Int8[Tensor, "*shape"]:
    """Return uniform random bytes, -128 to 127, for `Noise`.

    Normal noise takes three times as long, a third of a training step on patch tokens, and after the first layer, which
    sums hundreds of channels, it is the same.
    """
    size = math.prod(shape)
    words = torch.empty(-(-size // 8), dtype=torch.int64, device=generator.device).random_(
        -(2**63), None, generator=generator
    )
    return words.view(torch.int8)[:size].view(*shape)
