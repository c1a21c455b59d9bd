"""Learning curves while a training runs, for TensorBoard and DVCLive, through Accelerate's trackers.

They are for watching: the figures of record are in train.json. A training that is gone on with writes them anew, from
its first epoch on, so that a kill leaves no gap and no double.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import DVCLiveTracker, GeneralTracker, TensorBoardTracker


def make_trackers(names: Sequence[str], directory: Path) -> list[GeneralTracker]:
    """Return trackers that write to directory/<name>, in place of what was there, once `init_trackers` is called."""
    made: dict[str, GeneralTracker] = {
        "tensorboard": TensorBoardTracker("tensorboard", directory),
        # Settings, plots and results have their places in dvc.yaml: DVCLive is not to add others.
        "dvclive": DVCLiveTracker(dir=str(directory / "dvclive"), dvcyaml=None, save_dvc_exp=False, report=None),
    }
    return [made[name] for name in names]


def begin(accelerator: Accelerator, names: Sequence[str], directory: Path) -> None:
    """Start the accelerator's trackers in empty directories."""
    if accelerator.is_main_process:
        for name in names:
            shutil.rmtree(directory / name, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("train_flow")


def log_epoch(accelerator: Accelerator, entry: dict[str, Any]) -> None:
    """Log an entry of the history, at its optimiser step; the errors of dimensions as <metric>/<dimension>."""
    values: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, dict):
            values |= {f"{name}/{key}": x for key, x in value.items()}
        elif name != "step" and value is not None:
            values[name] = value
    accelerator.log(values, step=entry["step"])
