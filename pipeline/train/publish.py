"""What a training leaves: the policy bundle, its figures for people, and those for DVC."""

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from pipeline.files import write_atomic
from pipeline.inference.card import card
from pipeline.policy import bundle
from pipeline.policy.finetuned import TunedPolicy
from pipeline.policy.network import PolicyNetwork
from pipeline.provenance import provenance
from pipeline.train.loop import Progress

METRICS = ("train_loss", "val_loss", "train_action_mse", "val_action_mse", "val_action_mae", "wall_s")


def publish(
    out: Path,
    network: PolicyNetwork,
    spec: bundle.PolicySpec,
    texts: Float[Tensor, "K D"],
    progress: Progress,
    accelerator: Accelerator,
) -> str:
    """Write the policy with its model card, and how it came about; return that in a sentence.

    `texts` are the features of `spec.instructions`.
    """
    tower = network.tower() if isinstance(network, TunedPolicy) else None
    bundle.save(out / "policy", network, spec, tower, texts, card(spec, place=f"runs/{out.name}/policy"))
    write_history(out, progress, network.parameter_counts(), accelerator, spec.recipe)
    final = progress.published
    return (
        f"trained {progress.step} steps in {progress.wall_s:.0f} s; loss {final['train_loss']:.4f}, "
        f"action MSE {final['train_action_mse']:.5f}, MAE {final['train_action_mae']:.4f} on training "
        f"episodes: {out / 'policy'}"
    )


def write_history(
    out: Path, progress: Progress, parameters: dict[str, int], accelerator: Accelerator, recipe: dict[str, Any]
) -> None:
    """Write train.json, and for DVC metrics.json, curves.csv (every epoch) and errors.csv (those where actions were
    sampled: a gap would break the line). Each is whole or not there.

    train.json has the published network's figures on top, the recipe with the date, and every epoch's figures.
    """
    final = {k: v for k, v in progress.published.items() if k not in ("epoch", "step")}
    report = {
        **final,
        "published_epoch": progress.published["epoch"],
        "steps": progress.step,
        "wall_s": round(progress.wall_s, 1),
        "steps_per_s": round(progress.step / progress.wall_s, 2),
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "trainable_parameters": parameters,
        "recipe": {**recipe, "date": datetime.now(UTC).isoformat(timespec="seconds")},
        "epochs": progress.history,
        "provenance": provenance(),
    }
    write_atomic(out / "train.json", json.dumps(report, indent=2) + "\n")
    write_atomic(out / "metrics.json", json.dumps({name: report.get(name) for name in METRICS}, indent=2) + "\n")
    write_atomic(out / "curves.csv", as_csv(progress.history))
    write_atomic(out / "errors.csv", as_csv([entry for entry in progress.history if "train_action_mse" in entry]))


def as_csv(history: Sequence[dict[str, Any]]) -> str:
    """Return a line for each epoch, without the errors of single dimensions."""
    text = io.StringIO()
    columns = list(dict.fromkeys(k for e in history for k, v in e.items() if not isinstance(v, dict)))
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
