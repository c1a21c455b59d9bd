"""Building the asset pack on disk."""

import hashlib
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path

from pipeline.errors import AssetError
from pipeline.libero.assets import cabinet, cookies, scene, stove, tableware
from pipeline.libero.assets.mjcf import Files

log = logging.getLogger(__name__)

COVERED_SUITES = ("libero_spatial",)
MANIFEST = "manifest.json"
STALE_S = 3600.0  # a partial directory older than this was left by a killed builder


def files() -> Files:
    """Return the whole pack: relative path -> content. The same bytes each time."""
    return tableware.files() | cookies.files() | cabinet.files() | stove.files() | scene.files()


def version() -> str:
    """Return the pack's version: a hash of the code that makes it, so that a change of the code is a new pack."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:12]


PACK_VERSION = version()


def build(root: Path) -> Path:
    """Write the pack to <root>/libero-assets-<version> and return that directory.

    It appears by one rename, so any number of processes may build at once, and one killed leaves nothing that looks
    finished. A second call finds it and returns at once.

    Raises:
        AssetError: the directory cannot be written.
    """
    target = root / f"libero-assets-{PACK_VERSION}"
    if _complete(target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        partial = Path(tempfile.mkdtemp(prefix=".partial-assets-", dir=root))
        _write(partial)
        _publish(partial, target)
    except OSError as error:
        raise AssetError(
            f"cannot write the simulator's embedded assets to {root}: {error}. Make it writable, or free space there."
        ) from error
    return target


def _write(directory: Path) -> None:
    contents = files()
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sizes = {name: len(content) for name, content in sorted(contents.items())}
    (directory / MANIFEST).write_text(json.dumps(sizes, indent=1) + "\n")
    directory.chmod(0o755)  # mkdtemp's is private


def _publish(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; of several builders the first wins, the others drop their equal copy."""
    if target.exists() and not _complete(target):
        log.warning("rebuilding the damaged asset pack %s", target)
        target.rename(tempfile.mkdtemp(prefix=".partial-assets-", dir=target.parent))
    try:
        partial.rename(target)
    except OSError:
        if not _complete(target):
            raise
        shutil.rmtree(partial)


def _complete(directory: Path) -> bool:
    """Return whether all files of the manifest are there with their sizes."""
    try:
        sizes = json.loads((directory / MANIFEST).read_text())
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _sweep(root: Path) -> None:
    for left in root.glob(".partial-assets-*"):
        try:
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left)
        except FileNotFoundError:
            continue  # another process swept it
