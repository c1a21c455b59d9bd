"""Where the simulator's meshes, textures and scenes lie: the project's own pack, or LIBERO's."""

from pathlib import Path

from pipeline.config.params import Sim
from pipeline.errors import AssetError

PARTS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "turbosquid_objects")
"""Directories that hf-libero's object classes and arenas read."""


def asset_directory(sim: Sim, suite: str) -> Path:
    """Return the directory that holds the assets `sim` asks for, building or downloading it if need be.

    Raises:
        AssetError: it is not there and can't be had, or does not cover `suite`.
    """
    if sim.assets_path is not None:
        return _complete(Path(sim.assets_path).expanduser())
    raise AssetError("not yet")


def _complete(directory: Path) -> Path:
    missing = [part for part in PARTS if not (directory / part).is_dir()]
    if missing:
        raise AssetError(f"{directory} lacks {', '.join(missing)}")
    return directory
