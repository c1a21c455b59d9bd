"""How well a policy reproduces held-out or training actions, without a simulator."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.libero.conventions import ACTION_NAMES
from pipeline.policy.network import PolicyNetwork
from pipeline.train.data import Table
from pipeline.train.settings import TrainFlow

CHUNK = 1024  # rows per forward pass of the head


def split_metrics(
    network: PolicyNetwork, table: Table, train_rows: Tensor, val_rows: Tensor, cfg: TrainFlow, sample: bool
) -> dict[str, Any]:
    """Return val_loss, and, where `sample`, the action error of both splits; None where there are no rows.

    <split>_action_mse and <split>_action_mae are over all dimensions, <split>_action_mse_of by the dimension's name.
    """
    network.eval()
    metrics: dict[str, Any] = {
        "val_loss": mean_loss(network, table, val_rows, cfg.seed, at_once(cfg)) if len(val_rows) else None
    }
    if sample:
        for split, rows in (("train", train_rows), ("val", val_rows)):
            metrics |= {f"{split}_{name}": value for name, value in _action_metrics(network, table, rows, cfg).items()}
    network.train()
    return metrics


def _action_metrics(network: PolicyNetwork, table: Table, rows: Tensor, cfg: TrainFlow) -> dict[str, Any]:
    if len(rows) == 0:
        return dict.fromkeys(("action_mse", "action_mae", "action_mse_of"))
    mse, mae = action_error(network, table, rows, cfg.metrics_rows, cfg.seed, at_once(cfg))
    names = [str(i) for i in range(len(mse))] if network.arch.bounds else ACTION_NAMES
    by_name = dict(zip(names, mse.tolist(), strict=True))
    return {"action_mse": float(mse.mean()), "action_mae": float(mae.mean()), "action_mse_of": by_name}


def at_once(cfg: TrainFlow) -> int:
    """Return rows per forward pass: what training takes at a time, where they go through CLIP."""
    return CHUNK if cfg.encoder.tune == "none" else cfg.microbatch_size or cfg.batch_size


@torch.no_grad()
def mean_loss(network: PolicyNetwork, table: Table, rows: Int[Tensor, " N"], seed: int, chunk: int = CHUNK) -> float:
    """Return the mean loss over `rows`, with the same noise and times at every call, and what training adds to it."""
    generator = torch.Generator().manual_seed(seed)
    device = table.action.device
    total = 0.0
    for part in rows.split(chunk):
        noise = torch.randn(len(part), network.arch.horizon, network.arch.action_dim, generator=generator)
        u = torch.rand(len(part), generator=generator)
        batch = table.batch(part, network.arch.horizon)
        observed = batch.images, batch.text, batch.proprio
        loss = network(*observed, batch.actions, noise.to(device), u.to(device), keyframes=batch.keyframes)
        total += float(loss.sum())
    return total / len(rows)


@torch.no_grad()
def action_error(
    network: PolicyNetwork, table: Table, rows: Int[Tensor, " N"], limit: int, seed: int, chunk: int = CHUNK
) -> tuple[Float[Tensor, " A"], Float[Tensor, " A"]]:
    """Return each dimension's (MSE, MAE) between sampled and recorded actions in the environment's units, over chunks.

    At most `limit` rows, evenly spread over `rows`, are sampled, with the policy's own number of steps.
    """
    rows = _spread(rows, limit)
    generator = torch.Generator().manual_seed(seed)
    device = table.action.device
    squared, absolute = torch.zeros(2, network.arch.action_dim, dtype=torch.float64)
    for part in rows.split(chunk):
        noise = torch.randn(len(part), network.arch.horizon, network.arch.action_dim, generator=generator)
        batch = table.batch(part, network.arch.horizon)
        error = network.act(batch.images, batch.text, batch.proprio, noise.to(device)) - batch.actions
        squared += error.double().square().sum((0, 1)).cpu()
        absolute += error.double().abs().sum((0, 1)).cpu()
    count = len(rows) * network.arch.horizon
    return squared / count, absolute / count


def straightness(
    network: PolicyNetwork, table: Table, rows: Int[Tensor, " N"], limit: int, seed: int, chunk: int = CHUNK
) -> float | None:
    """Return how far from straight a flow's paths are, the mean over at most `limit` rows; None of other heads.

    0 where one step gives what many give. It asks the network 50 times.
    """
    if len(rows) == 0:
        return None
    generator = torch.Generator().manual_seed(seed)
    rows, total = _spread(rows, limit), 0.0
    for part in rows.split(chunk):
        noise = torch.randn(len(part), network.arch.horizon, network.arch.action_dim, generator=generator)
        batch = table.batch(part, network.arch.horizon)
        bent = network.straightness(batch.images, batch.text, batch.proprio, noise.to(table.action.device))
        if bent is None:
            return None
        total += float(bent.sum())
    return total / len(rows)


def _spread(rows: Int[Tensor, " N"], limit: int) -> Int[Tensor, " n"]:
    return rows if len(rows) <= limit else rows[torch.linspace(0, len(rows) - 1, limit).round().long()]
