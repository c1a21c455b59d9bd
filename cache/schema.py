"""What an embedding store holds: arrays, attributes, version. Zarr v3, readable by zarr-python without this package.

    attrs                 schema, fingerprint, rows, identity (encoder, transform, obs_shift, views, source ...)
    image/<camera>        (N, V, D) float16   pooled, projected CLIP features, as the encoder gives them
    grid/<camera>         (N, V, P, W) f16    if asked for: patch tokens averaged to a k x k grid, row by row; P = k^2
    lowdim/<name>         (N, k)    float32   joint_pos 7, ee_pose 7, gripper 2, action 7 [expert_action 7, ee_wrench 6]
                                              of other data than LIBERO's: their states, and action
    episode/start         (E,) int64          first row; episodes lie one after the other
    episode/length        (E,) int64          rows
    episode/task          (E,) int64          row of text/*
    episode/source        (E,) string         file/demo
    episode/digest        (E,) string         SHA-256 of that demo's data
    text/embedding        (K, D) float32      one instruction each
    text/instruction      (K,) string
    text/task             (K,) int64          the benchmark's number of the task
    integrity/sha256      (M,) string         "<SHA-256>  <path>" of every file, as of `sha256sum`; written last

N is a row count padded to whole shards: rows from attrs["rows"] on are NaN. Chunk = unit of read: attrs["chunk_rows"]
rows, or that halved until they fit into CHUNK_BYTES. Shard = unit of write. Every chunk carries a crc32c. Fill values
are ones that data never have (NaN, -1, ""): a missing chunk shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from cache.errors import StoreError

SCHEMA_VERSION = 3
"""Of the layout of a store."""
ROWS_VERSION = 2
"""Of what a row means; in the fingerprint. As long as it stays, a store of a new layout takes over finished shards."""
DIGESTS = "integrity/sha256"
CHUNK_BYTES = 2 * 2**20
"""A chunk holds at most so much: whoever wants one row of a grid shall not read 77 MB."""
LOWDIM_WIDTHS = {"joint_pos": 7, "ee_pose": 7, "gripper": 2, "action": 7}
OPTIONAL_WIDTHS = {"expert_action": 7, "ee_wrench": 6}
"""What a store has if all its demonstrations do."""
CODECS = frozenset({"bytes", "crc32c", "sharding_indexed", "vlen-utf8"})
"""The only codecs a store may use: none that can run code, none that needs a plug-in."""


@dataclass(frozen=True)
class Field:
    """One array with a row per time step: its path below the root, shape of one row, dtype and names of all axes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def chunk_rows(self, most: int) -> int:
        """Return the rows per chunk of this field: `most`, halved as long as a chunk is larger than CHUNK_BYTES."""
        rows = most
        while rows % 2 == 0 and rows * self.row_bytes > CHUNK_BYTES:
            rows //= 2
        return rows


def image(camera: str, views: int, dim: int) -> Field:
    """Return the field of one camera's pooled features, (N, V, D)."""
    return Field(f"image/{camera}", (views, dim), "float16", ("row", "view", "feature"))


def grid(camera: str, views: int, patches: int, width: int) -> Field:
    """Return the field of one camera's patch tokens, (N, V, P, W)."""
    return Field(f"grid/{camera}", (views, patches, width), "float16", ("row", "view", "patch", "channel"))


def lowdim(name: str, width: int) -> Field:
    """Return the field of one low-dimensional signal, (N, k)."""
    return Field(f"lowdim/{name}", (width,), "float32", ("row", name))


def fields(
    cameras: Sequence[str],
    views: int,
    dim: int,
    optional: Sequence[str] = (),
    tokens: tuple[int, int] | None = None,
    widths: Mapping[str, int] | None = None,
) -> tuple[Field, ...]:
    """Return all row arrays of a store, in their canonical order.

    Args:
        cameras, views: what pictures there are.
        dim: D of the pooled features.
        optional: signals of OPTIONAL_WIDTHS.
        tokens: (P, W) of a grid, None without one.
        widths: k of each signal, where they are not those of LOWDIM_WIDTHS and `optional`.
    """
    if widths is None:
        widths = LOWDIM_WIDTHS | {name: width for name, width in OPTIONAL_WIDTHS.items() if name in optional}
    return (
        *(image(c, views, dim) for c in cameras),
        *(grid(c, views, *tokens) for c in cameras if tokens),
        *(lowdim(name, width) for name, width in widths.items()),
    )


def create_field(root: zarr.Group, field: Field, rows: int, shard_rows: int, chunk_rows: int) -> None:
    """Create the empty array of one field; `rows` is padded to whole shards already, `chunk_rows` is the store's."""
    root.create_array(
        field.name,
        shape=(rows, *field.shape),
        dtype=field.dtype,
        chunks=(field.chunk_rows(chunk_rows), *field.shape),
        shards=(shard_rows, *field.shape),
        compressors=(Crc32cCodec(),),
        fill_value=float("nan"),
        dimension_names=field.axes,
    )


def create_table(root: zarr.Group, name: str, data: np.ndarray | Sequence[str], axes: tuple[str, ...]) -> zarr.Array:
    """Create a small array and write it: numbers, or a sequence of strings."""
    values = np.asarray(data, dtype=object) if not isinstance(data, np.ndarray) else data
    text = values.dtype == object
    fill: Any = "" if text else float("nan") if values.dtype.kind == "f" else -1 if values.dtype.kind == "i" else 0
    array = root.create_array(
        name,
        shape=values.shape,
        dtype=str if text else values.dtype,
        chunks=values.shape,
        compressors=(Crc32cCodec(),),
        fill_value=fill,
        dimension_names=axes,
    )
    array[...] = values
    return array


def check_codecs(array: zarr.Array, where: str) -> None:
    """Refuse an array that is not Zarr v3 or that uses a codec outside of CODECS.

    Raises:
        StoreError: naming array and codec.
    """
    if array.metadata.zarr_format != 3:
        raise StoreError(f"{where}: {array.name} is Zarr v{array.metadata.zarr_format}; only v3 is read. Embed again.")
    if unknown := sorted(set(_codec_names(array.metadata.to_dict()["codecs"])) - CODECS):
        raise StoreError(
            f"{where}: {array.name} uses the codec {unknown[0]!r}; only {', '.join(sorted(CODECS))} are opened. "
            "This is not a store that python -m stages.embed wrote."
        )


def _codec_names(codecs: Any) -> list[str]:
    names: list[str] = []
    for codec in codecs:
        names.append(str(codec["name"]))
        configuration = codec.get("configuration", {})
        for inner in ("codecs", "index_codecs"):
            names += _codec_names(configuration.get(inner, ()))
    return names
