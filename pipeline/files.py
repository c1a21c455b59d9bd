"""Files that are whole or not there, and directories that one process works in."""

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import DataError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `path`, and the directories above it, so that a kill leaves the old file or the new one."""
    write_atomic_with(
        path, lambda partial: partial.write_bytes(content.encode() if isinstance(content, str) else content)
    )


def write_atomic_with(path: Path, write: Callable[[Path], Any]) -> None:
    """Do as `write_atomic` does with what `write`, given another name, puts there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    write(partial)
    partial.replace(path)


@contextmanager
def exclusive(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which is removed at the end. A process that is killed leaves it, but holds it no longer.

    Raises:
        DataError: another process holds it; `what` names what both would work at.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except BlockingIOError:
            mine = False
        if not mine:  # held, or removed by its holder just now
            raise DataError(f"{lock.parent}: another process is at this very {what}. Wait for it, or stop it.")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
