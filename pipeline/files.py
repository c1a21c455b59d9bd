"""Files that are whole or not there."""

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `path`, and the directories above it, so that a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
