"""How well a policy reproduces held-out or training actions, without a simulator."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.config import TrainFlow
from pipeline.policy.network import ACTION_DIM, FlowPolicy
from pipeline.train.data import ResidentData

CHUNK = 1024  # rows per forward pass


def split_metrics(
    network: FlowPolicy, data: ResidentData, train_rows: Tensor, val_rows: Tensor, cfg: TrainFlow, sample: bool
) -> dict[str, Any]:
    """Return validation loss, and, where `sample`, action MSE and MAE of both splits. None where there are no rows."""
    network.eval()
    metrics: dict[str, Any] = {"val_loss": mean_loss(network, data, val_rows, cfg.seed) if len(val_rows) else None}
    if sample:
        for split, rows in (("train", train_rows), ("val", val_rows)):
            mse, mae = action_error(network, data, rows, cfg.metrics_rows, cfg.seed) if len(rows) else (None, None)
            metrics[f"{split}_action_mse"], metrics[f"{split}_action_mae"] = mse, mae
    network.train()
    return metrics


@torch.no_grad()
def mean_loss(network: FlowPolicy, data: ResidentData, rows: Int[Tensor, " N"], seed: int) -> float:
    """Return the mean flow loss over `rows`, with the same noise and times at every call."""
    generator = torch.Generator().manual_seed(seed)
    device = data.action.device
    total = 0.0
    for part in rows.split(CHUNK):
        noise = torch.randn(len(part), network.arch.horizon, ACTION_DIM, generator=generator)
        t = torch.rand(len(part), generator=generator)
        batch = data.batch(part.to(device), network.arch.horizon)
        loss = network(batch.images, batch.text, batch.proprio, batch.actions, noise.to(device), t.to(device))
        total += float(loss.sum())
    return total / len(rows)


@torch.no_grad()
def action_error(
    network: FlowPolicy, data: ResidentData, rows: Int[Tensor, " N"], limit: int, seed: int
) -> tuple[float, float]:
    """Return (MSE, MAE) between sampled and recorded actions in the environment's units, over whole chunks.

    At most `limit` rows, evenly spread over `rows`, are sampled, with the policy's own number of steps.
    """
    if len(rows) > limit:
        rows = rows[torch.linspace(0, len(rows) - 1, limit).round().long()]
    generator = torch.Generator().manual_seed(seed)
    device = data.action.device
    squared = absolute = 0.0
    for part in rows.split(CHUNK):
        noise = torch.randn(len(part), network.arch.horizon, ACTION_DIM, generator=generator)
        batch = data.batch(part.to(device), network.arch.horizon)
        error = network.act(batch.images, batch.text, batch.proprio, noise.to(device)) - batch.actions
        squared += float(error.square().sum())
        absolute += float(error.abs().sum())
    count = len(rows) * network.arch.horizon * ACTION_DIM
    return squared / count, absolute / count
