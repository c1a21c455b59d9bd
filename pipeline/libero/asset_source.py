"""Where the simulator's meshes, textures and scenes lie: the project's own pack, or LIBERO's.

`sim.assets` decides, and nothing else: there is no falling back from one to the other, since results would differ.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from pipeline.config.params import Compute, Sim
from pipeline.errors import AssetError
from pipeline.libero.assets import COVERED_SUITES, build
from pipeline.libero.headless import CONFIG_DIR

log = logging.getLogger(__name__)

REPOSITORY = "lerobot/libero-assets"
"""The Hugging Face dataset that hf-libero itself downloads."""

PARTS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "turbosquid_objects")
"""Directories that hf-libero's object classes and arenas read."""

HUB_TIMEOUT_S = 5.0


def asset_directory(sim: Sim, suite: str) -> Path:
    """Return the directory that holds the assets `sim` asks for; builds or downloads it if need be.

    The name of one that was built or downloaded is its version.

    Raises:
        AssetError: it is not there and can't be had, or does not cover `suite`.
    """
    if sim.assets == "embedded":
        return _embedded(suite)
    if sim.assets_path is not None:
        return _given(Path(sim.assets_path).expanduser())
    return _downloaded()


def require_assets(sim: Sim, suites: Iterable[str], compute: Compute) -> None:
    """Raise what `asset_directory` would in this machine's workers, before any is started.

    A cluster's machines have assets of their own, which nobody here can look at.
    """
    if compute.scheduler in ("serial", "local"):
        for suite in sorted(suites):
            asset_directory(sim, suite)


def _embedded(suite: str) -> Path:
    if suite not in COVERED_SUITES:
        raise AssetError(
            f"sim.assets=embedded covers {', '.join(COVERED_SUITES)} only, not {suite}. Set sim.assets=official, "
            f"which downloads LIBERO's own ({REPOSITORY}), or give a copy of them with sim.assets_path."
        )
    return build(CONFIG_DIR)


def _given(directory: Path) -> Path:
    if not directory.is_dir():
        raise AssetError(f"sim.assets_path={directory} is not a directory. {_remedy()}")
    missing = [part for part in PARTS if not (directory / part).is_dir()]
    if missing:
        raise AssetError(f"sim.assets_path={directory} lacks {', '.join(missing)}. {_remedy()}")
    return directory.resolve()


def _downloaded() -> Path:
    """Return LIBERO's assets in the Hugging Face cache, downloading what it lacks."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            # Raises when a file is missing, so that a download that broke off is not taken for a whole one.
            found = snapshot_download(REPOSITORY, repo_type="dataset", local_files_only=True)
        except LocalEntryNotFoundError:
            commit = HfApi().dataset_info(REPOSITORY, timeout=HUB_TIMEOUT_S).sha
            log.info("downloading LIBERO's assets (%s, %s) into the Hugging Face cache", REPOSITORY, commit)
            # Not by the commit: the cache then forgets which one "main" is, and the line above finds nothing.
            found = snapshot_download(REPOSITORY, repo_type="dataset", etag_timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's, OSError and ValueError
        lines = str(error).strip().splitlines()
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        raise AssetError(
            f"sim.assets=official, but {REPOSITORY} can't be had from the Hugging Face hub: {reason}. {_remedy()}"
        ) from error
    directory = Path(found)
    missing = [part for part in PARTS if not (directory / part).is_dir()]
    if missing:
        raise AssetError(f"{REPOSITORY}, downloaded to {directory}, lacks {', '.join(missing)}. {_remedy()}")
    return directory


def _remedy() -> str:
    return (
        f"With a network: hf download --repo-type dataset {REPOSITORY}. Without one, copy that data set here and set "
        "sim.assets_path to its directory, or set sim.assets=embedded."
    )
