"""Checkpoints: written beside, flushed to disk, renamed, so that one is whole or not there."""

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from cache.plan import differences, digest
from pipeline.errors import PipelineError
from pipeline.files import publish_directory, write_atomic

log = logging.getLogger(__name__)

KEEP = 2
IDENTITY = "identity.json"
DELETED = ".deleted"  # of a directory that is being deleted
_NAME = re.compile(r"step-(\d{9})")


def claim(scratch: Path, identity: Mapping[str, Any]) -> Path:
    """Return the directory for the checkpoints of this training. Those of others beside it are left, and reported.

    Args:
        scratch: directory of all trainings' checkpoints.
        identity: all that the weights depend on, as plain JSON values.
    """
    for half in scratch.glob(f"*{DELETED}"):
        shutil.rmtree(half, ignore_errors=True)
    mine = scratch / digest(identity)[:16]
    if not mine.exists():
        for path in sorted(scratch.glob(f"*/{IDENTITY}")):
            if checkpoints(path.parent):
                _report(path, identity)
        write_atomic(mine / IDENTITY, json.dumps(identity, indent=1))
    return mine


def _report(path: Path, identity: Mapping[str, Any]) -> None:
    try:
        other = json.loads(path.read_text())
    except ValueError:
        return
    log.warning(
        "%s: has checkpoints of another training, which are not gone on with: %s. To go on with them put that back; "
        "else the directory can be deleted",
        path.parent,
        "; ".join(differences(other, json.loads(json.dumps(identity)), "there")),
    )


def save(accelerator: Accelerator, directory: Path, step: int) -> None:
    """Write the state of everything that `accelerator` prepared or registered as directory/step-<step>.

    Every process must call it. The last KEEP checkpoints stay.

    Raises:
        PipelineError: the file system refuses. Older checkpoints are as they were.
    """
    final = directory / f"step-{step:09d}"
    partial = final.with_name(final.name + ".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            publish_directory(partial, final)
            for old in checkpoints(directory)[:-KEEP]:
                remove(old)
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        free = shutil.disk_usage(directory).free
        shutil.rmtree(partial, ignore_errors=True)
        raise PipelineError(
            f"{partial}: the checkpoint cannot be written, {free / 2**20:.0f} MiB are free there ({error}). Make room "
            "and start again: it goes on from the checkpoint before"
        ) from error
    accelerator.wait_for_everyone()


def remove(directory: Path) -> None:
    """Delete a checkpoint, or all of a training. Killed in the middle, no half of one is left under its name."""
    doomed = directory.with_name(directory.name + DELETED)
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)
    shutil.rmtree(doomed)


def seen_by_all(accelerator: Accelerator, directory: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first, as the main process sees them."""
    found: list[Any] = [checkpoints(directory)]
    broadcast_object_list(found)
    return found[0]


def resume(accelerator: Accelerator, found: Sequence[Path]) -> bool:
    """Load the newest of these checkpoints that every process can read; one that is damaged is named and passed over.

    Returns:
        False if there is none.

    Raises:
        PipelineError: there are checkpoints and none can be read.
    """
    for path in reversed(found):
        if _load(accelerator, path):
            return True
        log.warning("%s: trying the one before", path)
    if found:
        raise PipelineError(
            f"{found[0].parent}: none of its {len(found)} checkpoints can be read. Delete it to train anew."
        )
    return False


def _load(accelerator: Accelerator, path: Path) -> bool:
    """Return whether every process could load `path`: they have to go on from the same step."""
    mine = 1
    try:
        accelerator.load_state(str(path))
    except torch.OutOfMemoryError:  # the checkpoint is sound
        raise
    except Exception as error:  # a truncated file raises whatever its format's reader raises
        log.warning("%s: cannot be read (%s: %s)", path, type(error).__name__, error)
        mine = 0
    loaded = accelerator.gather(torch.tensor([mine], device=accelerator.device))
    assert isinstance(loaded, torch.Tensor)
    return bool(loaded.all())


def checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    found = [p for p in directory.glob("step-*") if _NAME.fullmatch(p.name)] if directory.is_dir() else []
    return sorted(found)
