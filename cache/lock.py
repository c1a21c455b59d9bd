"""One builder at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cache.errors import StoreError


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file. The kernel gives it back when the process ends, however it does.

    Raises:
        StoreError: another process holds it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StoreError(
                f"{path.parent}: another build is at work there (process {file.read().strip() or 'unknown'}). "
                "Wait for it or end it; what it has finished is kept"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
