"""An update as one CUDA graph: to launch its kernels one by one takes a GPU many times as long as to run them."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.errors import ConfigError
from pipeline.train.images import Features, ResidentImages
from pipeline.train.update import Drawn, Update

WARM_UP = 3
"""Updates before the recording: libraries allocate and choose in the first ones."""
Replay = Callable[[], None]


class GraphedUpdate:
    """An `Update` whose full batches are recorded once and replayed: the same operations on the same random numbers.

    The first batches, and those that are smaller, go the usual way. Learning rate and random numbers are written to
    where the graph reads them, before each replay.

    Args:
        record: makes the replay of a function; None: a CUDA graph's.

    Raises:
        ConfigError: the update is not one that a graph can hold.
    """

    def __init__(self, update: Update, record: Callable[[Callable[[], None]], Replay] | None = None) -> None:
        self._update, self._record = update, record or self._graph
        device = update.accelerator.device
        if record is None and (why := unfit(update)) is not None:
            raise ConfigError(f"train_flow.cuda_graph is true, but {why}. Set it to false")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._rate, self._loss = torch.zeros((), device=device), torch.zeros((), device=device)
        self._rows: Tensor | None = None
        self._drawn: Drawn | None = None
        self._replay: Replay | None = None
        self._done = 0

    def __call__(self, rows: Int[Tensor, " B"], images: Features | None, step: int) -> Float[Tensor, ""]:
        """See `Update`."""
        update = self._update
        if len(rows) < update.cfg.batch_size or self._done < WARM_UP:
            self._done += 1
            with self._aside():
                return update(rows, images, step)
        self._give(rows, update.draw(len(rows), step))
        if self._replay is None:
            self._replay = self._record(self._step)
        self._replay()
        update.scheduler.step()
        if update.average is not None:
            update.average.n_averaged += 1
        return self._loss.clone()

    def _give(self, rows: Tensor, drawn: Drawn) -> None:
        """Write a batch's rows, random numbers and learning rate to where `_step` reads them."""
        device = self._update.accelerator.device
        if self._rows is None or self._drawn is None:
            self._rows, self._drawn = rows.to(device, copy=True), drawn.to(device)
        for place, value in zip((self._rows, *self._drawn.tensors()), (rows, *drawn.tensors()), strict=True):
            place.copy_(value)
        self._rate.fill_(self._update.optimizer.param_groups[0]["lr"])

    def _step(self) -> None:
        """Make one update, of what `_give` has written."""
        update = self._update
        assert self._rows is not None and self._drawn is not None
        groups = update.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        loss = update.backward(self._rows, None, self._drawn, 1.0, update.cfg.batch_size)
        update.accelerator.clip_grad_norm_(update.model.parameters(), update.cfg.clip_norm)
        for group in groups:
            group["lr"] = self._rate  # a number would be recorded as it is now
        update.optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        update.optimizer.zero_grad()
        if update.average is not None:  # not by `update_parameters`, which asks the device how many there were
            mine = update.accelerator.unwrap_model(update.model).parameters()
            averages = [p.detach() for p in update.average.module.parameters()]
            get_ema_multi_avg_fn(update.cfg.ema_decay)(averages, [p.detach() for p in mine], torch.ones(()))
        self._loss.copy_(loss)

    def _graph(self, function: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay

    @contextlib.contextmanager
    def _aside(self) -> Any:
        """Run on a stream other than the default one: a recording is not to find work of that one."""
        if self._stream is None:
            yield
            return
        usual = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            yield
        usual.wait_stream(self._stream)


def unfit(update: Update) -> str | None:
    """Return why an update cannot be a CUDA graph; None if it can."""
    accelerator, cfg = update.accelerator, update.cfg
    if accelerator.device.type != "cuda":
        return f"training is on {accelerator.device.type}"
    if accelerator.num_processes > 1 or update.accumulation > 1:
        return f"a batch is shared by {accelerator.num_processes * update.accumulation} forward passes"
    if cfg.precision == "fp16":
        return "train_flow.precision is fp16, whose scaling depends on what overflows"
    if update.teacher is not None or cfg.encoder.tune != "none":
        return "train_flow.teacher or train_flow.encoder.tune is set"
    if not isinstance(update.table.images, ResidentImages):
        return "features are streamed: train_flow.data_mode"
    return None
