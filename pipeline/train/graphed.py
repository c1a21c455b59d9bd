"""An update as one CUDA graph, whose kernels are launched together and not one by one."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.policy.cuda_graph import WARM_UP, Capture, Replay, captured
from pipeline.train.images import Features, ResidentImages
from pipeline.train.plan import accumulation_steps
from pipeline.train.settings import TrainFlow
from pipeline.train.update import RandomNumbers, Update


class GraphedUpdate:
    """An `Update` whose full batches are captured once and replayed: the same operations on the same random numbers.

    The first batches, and those that are smaller, run uncaptured. For all of them the learning rate is a number on the
    device, of single precision: so a training that is interrupted makes the same updates.

    Args:
        capture: makes the replay of a function; None: as a CUDA graph.

    Raises:
        ConfigError: features are streamed; see also `check_fit`.
    """

    def __init__(self, update: Update, capture: Capture | None = None) -> None:
        device = update.accelerator.device
        if capture is None and not isinstance(update.table.images, ResidentImages):
            raise unfit("features are streamed (train_flow.data_mode, memory_mib)")
        self._update, self._capture = update, capture or captured
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._rate, self._loss = torch.zeros((), device=device), torch.zeros((), device=device)
        self._rows: Tensor | None = None
        self._random: RandomNumbers | None = None
        self._replay: Replay | None = None
        self._warm = 0
        warnings.filterwarnings("ignore", message=".*capturable=True.*")  # meant for who never captures

    def __call__(self, rows: Int[Tensor, " B"], images: Features | None, step: int) -> Float[Tensor, ""]:
        """See `Update`."""
        update, device = self._update, self._update.accelerator.device
        random = update.draw(len(rows), step)
        self._rate.fill_(update.optimizer.param_groups[0]["lr"])
        if len(rows) < update.cfg.batch_size or self._warm < WARM_UP:
            self._warm += 1
            with self._on_side_stream():
                self._descend(rows.to(device), random.to(device))
                if update.average is not None:
                    update.average.update_parameters(update.accelerator.unwrap_model(update.model))
        else:
            self._give(rows, random)
            if self._replay is None:
                self._replay = self._capture(self._whole, device)
            self._replay()
            if update.average is not None:
                update.average.n_averaged += 1
        update.scheduler.step()
        return self._loss.clone()

    def _give(self, rows: Tensor, random: RandomNumbers) -> None:
        """Write a batch's rows and random numbers to where the graph reads them."""
        device = self._update.accelerator.device
        if self._rows is None or self._random is None:
            self._rows, self._random = rows.to(device, copy=True), random.to(device)
        for place, value in zip((self._rows, *self._random.tensors()), (rows, *random.tensors()), strict=True):
            if place.is_cuda and not value.is_cuda:
                value = value.pin_memory()  # from other memory a copy waits for what runs on the GPU
            place.copy_(value, non_blocking=True)

    def _whole(self) -> None:
        """Make one update, average and all, of what `_give` has written."""
        update = self._update
        assert self._rows is not None and self._random is not None
        self._descend(self._rows, self._random)
        if update.average is not None and update.average.multi_avg_fn is not None:
            # Not by `update_parameters`, which copies its counter to the device. The buffers, constant, it has copied.
            mine = [p.detach() for p in update.accelerator.unwrap_model(update.model).parameters()]
            averages = [p.detach() for p in update.average.module.parameters()]
            update.average.multi_avg_fn(averages, mine, update.average.n_averaged)

    def _descend(self, rows: Tensor, random: RandomNumbers) -> None:
        """Make one update of the weights, and leave its loss where it is read."""
        update, groups = self._update, self._update.optimizer.param_groups
        loss = update.backward(rows, None, random, 1.0, len(rows))
        update.accelerator.clip_grad_norm_(update.model.parameters(), update.cfg.clip_norm)
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = self._rate  # a graph would keep a number as it is now
        update.optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        update.optimizer.zero_grad()
        self._loss.copy_(loss)

    @contextlib.contextmanager
    def _on_side_stream(self) -> Iterator[None]:
        """Run on another stream than the default one, whose work a capture must not depend on."""
        if self._side is None:
            yield
            return
        usual = torch.cuda.current_stream(self._side.device)
        self._side.wait_stream(usual)
        with torch.cuda.stream(self._side):
            yield
        usual.wait_stream(self._side)


def check_fit(cfg: TrainFlow, device: torch.device, processes: int) -> None:
    """Refuse a training whose updates no CUDA graph can hold, as far as it is known before the store is read.

    Raises:
        ConfigError: tells why.
    """
    passes = processes * accumulation_steps(cfg, processes)
    if device.type != "cuda":
        raise unfit(f"training is on {device.type}")
    if passes > 1:
        raise unfit(f"a batch is shared by {passes} forward passes")
    if cfg.precision == "fp16":
        raise unfit("train_flow.precision is fp16, whose scaling depends on what overflows")
    if cfg.teacher is not None or cfg.encoder.tune != "none":
        raise unfit("train_flow.teacher or train_flow.encoder.tune is set")


def unfit(why: str) -> ConfigError:
    """Return the error of a training whose updates no CUDA graph can hold."""
    return ConfigError(f"train_flow.cuda_graph is true, but {why}. Set train_flow.cuda_graph to false")
