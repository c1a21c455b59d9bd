"""Files and directories that are whole or not there, also after a power cut; room for them; one process at a time."""

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, PipelineError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `path`, and the directories above it, so that a kill leaves the old file or the new one."""
    write_atomic_with(
        path, lambda partial: partial.write_bytes(content.encode() if isinstance(content, str) else content)
    )


def write_atomic_with(path: Path, write: Callable[[Path], Any]) -> None:
    """Do as `write_atomic` does with what `write`, given another name, puts there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    try:
        write(partial)
        _fsync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def publish_directory(ready: Path, final: Path) -> None:
    """Move a finished directory to `final`, flushed to the disk. An older one there is removed only then.

    A kill leaves the new one, or the older one: there, or where `restore_directory` takes it back from.
    """
    final = final.resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    if ready.stat().st_dev != final.parent.stat().st_dev:  # a rename does not reach there
        near = final.with_name(f".{final.name}.partial")
        shutil.rmtree(near, ignore_errors=True)
        shutil.copytree(ready, near, symlinks=True)
        shutil.rmtree(ready)
        ready = near
    for path in [ready, *ready.rglob("*")]:
        if not path.is_symlink():
            _fsync(path)
    if final.exists():
        shutil.rmtree(_replaced(final), ignore_errors=True)
        final.rename(_replaced(final))
    ready.rename(final)
    _fsync(final.parent)
    shutil.rmtree(_replaced(final), ignore_errors=True)


def refuse_foreign(out: Path, published: Collection[str]) -> None:
    """Refuse a directory that is about to be replaced and holds what was not published there.

    Args:
        published: names of what it may hold.

    Raises:
        DataError: names what would be lost.
    """
    strange = sorted({path.name for path in out.iterdir()} - set(published)) if out.is_dir() else []
    if strange:
        raise DataError(f"--out {out}: holds {strange[0]}, which would be lost. Give a directory of its own")


def restore_directory(final: Path) -> None:
    """Put a directory back that a kill left aside while its successor was published."""
    final = final.resolve()
    if not final.exists():
        with suppress(OSError):  # as a rule there is none
            _replaced(final).rename(final)


def published(final: Path) -> Path:
    """Return where a published directory is to be read: `final`, or, where a kill left it so, the older one aside."""
    return final if final.exists() or not _replaced(final.resolve()).exists() else _replaced(final.resolve())


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced.partial")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_writable(path: Path, needed_bytes: int = 0) -> None:
    """Refuse a directory, there already or not, in which files can't be made, or so many bytes find no room.

    Raises:
        PipelineError: names the directory, the reason and the remedy. To be called before long work, not after it.
    """
    folder = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise PipelineError(
            f"{path}: cannot be written: {error.strerror}. Put that right, or name another directory"
        ) from error
    if free < needed_bytes:
        raise PipelineError(
            f"{path}: needs {needed_bytes / 2**20:.1f} MiB, and {free / 2**20:.1f} MiB are free there. Make room, or "
            "name a directory on another disk"
        )


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files below a directory, in which others may be at work; 0 if it is not there."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


@contextmanager
def exclusive(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which is removed at the end. A process that is killed leaves it, but holds it no longer.

    Raises:
        DataError: another process holds it; `what` names what both would work at.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except BlockingIOError:
            mine = False
        if not mine:  # held, or removed by its holder just now
            file.seek(0)
            raise DataError(
                f"{lock.parent}: another process is at this very {what} (process {file.read() or 'unknown'}). Wait for "
                "it, or stop it."
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
