"""Checkpoints: written beside, flushed to disk, renamed, so that one is whole or not there."""

import logging
import re
import shutil
from pathlib import Path

from accelerate import Accelerator

from cache.ledger import fsync_directory, fsync_file
from pipeline.errors import PipelineError

log = logging.getLogger(__name__)

KEEP = 2
_NAME = re.compile(r"step-(\d{9})")


def save(accelerator: Accelerator, directory: Path, step: int) -> None:
    """Write the state of everything that `accelerator` prepared or registered as directory/step-<step>.

    Every process must call it. The last KEEP checkpoints stay.
    """
    final = directory / f"step-{step:09d}"
    partial = final.with_name(final.name + ".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _flush(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        fsync_directory(directory)
        for old in checkpoints(directory)[:-KEEP]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, directory: Path) -> bool:
    """Load the newest checkpoint that can be read; a damaged one is named and passed over. False if there is none.

    Raises PipelineError if there are checkpoints and none can be read.
    """
    found = checkpoints(directory)
    for path in reversed(found):
        try:
            accelerator.load_state(str(path))
        except Exception as error:  # a truncated file raises whatever its format's reader raises
            log.warning("%s: cannot be read (%s: %s); trying the one before", path, type(error).__name__, error)
            continue
        return True
    if found:
        raise PipelineError(f"{directory}: none of its {len(found)} checkpoints can be read. Delete it to train anew.")
    return False


def checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    found = [p for p in directory.glob("step-*") if _NAME.fullmatch(p.name)] if directory.is_dir() else []
    return sorted(found)


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            fsync_file(path)
    fsync_directory(directory)
