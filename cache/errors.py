"""Errors of the embedding store. Each message names the store, the part and the remedy."""

import errno
import os
from pathlib import Path


class StoreError(Exception):
    """A store is missing, damaged, half built, or not the one that was asked for."""


def not_written(path: Path, error: OSError) -> StoreError:
    """Return the error to raise when the file system refuses to write."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "Make room" if full else "Put that right"
    return StoreError(f"{path}: cannot be written: {reason}. {remedy} and start again; finished shards are kept")
