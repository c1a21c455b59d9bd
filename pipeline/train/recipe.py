"""What a policy was trained by and on, to be kept beside it: settings, demonstrations, encoder, machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from pipeline.compute import cores
from pipeline.provenance import cpu_name
from pipeline.train.data import Episode, split_by_episode
from pipeline.train.settings import TrainFlow


def recipe(
    cfg: TrainFlow,
    feature_noise: float,
    demos: str,
    episodes: Sequence[Episode],
    encoder: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Return plain JSON values that a training repeated on this machine gives again: no date among them.

    Args:
        demos: where the demonstrations come from (demos.source).
        episodes: of the table that is trained on; some of them are for validation.
        encoder: identity of the encoder, as the store has it.
    """
    rows, _ = split_by_episode(episodes, cfg.val_fraction, cfg.seed)
    learnt = int(torch.isin(torch.tensor([episode.first for episode in episodes]), rows).sum())
    return {
        "train_flow": asdict(cfg),
        "feature_noise": feature_noise,
        "demonstrations": {"source": demos, "learnt": learnt, "validation": len(episodes) - learnt, "steps": len(rows)},
        "encoder": {name: encoder.get(name) for name in ("model", "pretrained", "precision")},
        "machine": machine(device),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Return the kind and name of what computes, and how many CPU cores this process may use."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {"device": device.type, "name": name, "cores": cores()}
