"""Which rows, seeds and learning rate a step has: pure functions of the settings and the step."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.train.settings import TrainFlow


def step_seed(seed: int, step: int) -> int:
    """Return a 63-bit seed of its own for each (seed, step), by splitmix64's mixing constants."""
    x = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return (x ^ (x >> 31)) >> 1


def epoch_batches(rows: Int[Tensor, " N"], batch_size: int, seed: int, epoch: int) -> Iterator[Int[Tensor, " B"]]:
    """Yield the global batches of an epoch: every row exactly once, in an order of its own, the last batch smaller."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(step_seed(seed + 1, epoch)))
    yield from rows[order].split(batch_size)


def row_counts(
    rows: Int[Tensor, " n"], tasks: Int[Tensor, " N"], balance: str, seed: int, epoch: int
) -> Int[Tensor, " N"]:
    """Return how often each of N rows comes in an epoch: 0 for those that are not in `rows`, len(rows) in all.

    With balance "none" each comes once. With "task" each task comes equally often: the rows of a task that has m and is
    to have n come n // m or n // m + 1 times, those with one more evenly spread, from a place that epoch and seed tell.
    """
    counts = torch.zeros(len(tasks), dtype=torch.int64)
    if balance == "none":
        counts[rows] = 1
        return counts
    generator = torch.Generator().manual_seed(step_seed(seed + 2, epoch))
    found = tasks[rows].unique().tolist()
    for k, task in enumerate(found):
        members = rows[tasks[rows] == task]
        m, n = len(members), len(rows) // len(found) + (k < len(rows) % len(found))
        edges = torch.arange(m + 1) * n + torch.randint(m, (1,), generator=generator)
        counts[members] = (edges // m).diff()
    return counts


def total_steps(cfg: TrainFlow, rows: int) -> int:
    """Return the optimiser steps of all epochs over `rows` training rows."""
    return cfg.epochs * math.ceil(rows / cfg.batch_size)


def accumulation_steps(cfg: TrainFlow, processes: int) -> int:
    """Return how many forward passes make up one process's share of the global batch.

    Raises ConfigError if batch_size is not a multiple of processes * microbatch_size.
    """
    micro = cfg.microbatch_size or max(1, cfg.batch_size // processes)
    if cfg.batch_size % (micro * processes):
        raise ConfigError(
            f"train_flow.batch_size {cfg.batch_size} is not a multiple of {processes} processes x microbatch "
            f"size {micro}. Change one of them; processes: accelerate launch --num_processes N"
        )
    return cfg.batch_size // (micro * processes)


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Return the factor on the learning rate at `step` of `total`: linear warm-up, then cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
