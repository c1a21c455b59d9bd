"""The pictures on disk, in Zarr v3: one row is one state of a scene, seen by both cameras.

attrs                    fingerprint, rows, contents (per scene, see state.Contents), sim, made_with
image/<camera>           (N, S, S, 3) uint8   upright
label/<camera>           (N, S, S)    int8    which thing each pixel shows, -1 for none
split                    (N,) int8            TRAIN, HELD_OUT: other arrangements, UNSEEN: other scenes
...                      state.FIELDS
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.errors import DataError
from pipeline.libero.sim.simulator import CAMERAS
from pipeline.scenes.record import PICTURES
from pipeline.scenes.state import FIELDS, Contents

VERSION = 1
TRAIN, HELD_OUT, UNSEEN = 0, 1, 2
CHUNK_ROWS = 32
ATTRIBUTES = "attributes.json"


def create(path: Path, units: int, image_size: int) -> None:
    """Make the empty arrays of a store, of which each unit fills a shard; harmless when they are there."""
    root = zarr.open_group(path, mode="a")
    for name, shape, dtype in _arrays(image_size):
        if name not in root:
            root.create_array(
                name,
                shape=(units * PICTURES, *shape),
                dtype=dtype,
                chunks=(CHUNK_ROWS, *shape),
                shards=(PICTURES, *shape),
                compressors=(ZstdCodec(level=1), Crc32cCodec()),
                fill_value=float("nan") if dtype == "float32" else None,
            )


def _arrays(size: int) -> list[tuple[str, tuple[int, ...], str]]:
    pictures = [(f"image/{camera}", (size, size, 3), "uint8") for camera in CAMERAS]
    labels = [(f"label/{camera}", (size, size), "int8") for camera in CAMERAS]
    return [*pictures, *labels, ("split", (), "int8"), *((name, *kind) for name, kind in FIELDS.items())]


def write(path: Path, index: int, rows: Mapping[str, np.ndarray]) -> None:
    """Write the shards of one unit."""
    with zarr.config.set({"array.write_empty_chunks": True}):  # a shard that is not there is damage, not zeros
        root = zarr.open_group(path, mode="r+")
        for name, values in rows.items():
            array = root[name]
            assert isinstance(array, zarr.Array)
            array[index * PICTURES : (index + 1) * PICTURES] = values


def fingerprint_of(path: Path) -> str | None:
    """Return that of a finished store; None of what is none, is not whole, or is of another version."""
    try:
        return Pictures(path).fingerprint
    except DataError:
        return None


class Pictures:
    """A finished store, opened for reading.

    Args:
        path: directory that `python -m stages.scenes` wrote.

    Raises:
        DataError: it is not there, not whole, or of another version.
    """

    def __init__(self, path: Path) -> None:
        remedy = "Take the pictures: python -m stages.scenes"
        if not (path / ATTRIBUTES).is_file():
            raise DataError(f"{path}: no pictures of scenes there. {remedy}")
        self.path = path
        try:
            self.attributes: dict[str, Any] = json.loads((path / ATTRIBUTES).read_text())
            version = self.attributes.get("version")
        except (ValueError, AttributeError) as error:
            raise DataError(f"{path / ATTRIBUTES}: damaged ({error}). {remedy}") from None
        if version != VERSION:
            raise DataError(f"{path}: is of version {version}, not {VERSION}. {remedy}")
        self._root = zarr.open_group(path, mode="r")
        self._check_whole(remedy)
        self.contents = {int(n): Contents.from_json(tree) for n, tree in self.attributes["contents"].items()}

    def _check_whole(self, remedy: str) -> None:
        """Refuse a store that lacks a shard, which Zarr would read as fill values."""
        for name in ("split", *(f"{kind}/{camera}" for kind in ("image", "label") for camera in CAMERAS), *FIELDS):
            array = self._root[name]
            assert isinstance(array, zarr.Array) and array.shards is not None
            there = sum(path.is_file() for path in (self.path / name / "c").rglob("*"))
            if there != array.shape[0] // array.shards[0]:
                raise DataError(
                    f"{self.path / name}: has {there} of {array.shape[0] // array.shards[0]} shards. {remedy}"
                )

    @property
    def fingerprint(self) -> str:
        """Digest of everything that the pictures depend on."""
        return str(self.attributes["fingerprint"])

    @cached_property
    def split(self) -> np.ndarray:
        """TRAIN, HELD_OUT or UNSEEN of each row (N,)."""
        return self.read("split")

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Return rows of an array.

        Raises:
            DataError: they are damaged.
        """
        array = self._root[name]
        assert isinstance(array, zarr.Array)
        try:
            return np.asarray(array[rows])
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(
                f"{self.path / name}: damaged ({error}). Delete {self.path} and take the pictures again: "
                "python -m stages.scenes"
            ) from None

    def state(self) -> dict[str, np.ndarray]:
        """Return all of FIELDS."""
        return {name: self.read(name) for name in FIELDS}
