"""Decode shards straight into memory: several times as fast as zarr-python's codec pipeline, and as strict.

A shard (Zarr v3, `sharding_indexed`) is its chunks, in any order, and at its end an index: of each chunk, offset and
size as little-endian uint64, both 2^64 - 1 for a chunk that is absent. Each chunk, and the index, ends in its crc32c.
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zarr

from cache.errors import StoreError
from cache.files import File

CRC_BYTES = 4
ABSENT = 2**64 - 1


class Damage(Exception):
    """What is wrong with a shard; whoever knows the shard's name turns it into a StoreError."""


@dataclass(frozen=True)
class Layout:
    """How the shards of one row array are made up.

    Attributes:
        dtype: of the values.
        row_shape: shape of one row.
        chunk_rows: rows per chunk.
        chunks: chunks per shard.
    """

    dtype: np.dtype
    row_shape: tuple[int, ...]
    chunk_rows: int
    chunks: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.row_shape) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk without its checksum."""
        return self.chunk_rows * self.row_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes of the index with its checksum."""
        return 16 * self.chunks + CRC_BYTES


def layout(array: zarr.Array, where: str) -> Layout:
    """Return the layout of a row array.

    Raises:
        StoreError: it is encoded in any other way than `schema.create_field` has it.
    """
    shard_shape = array.shards or array.chunks
    found: Any = array.metadata.to_dict()
    codec, *more = found["codecs"]
    sharding, keys = codec.get("configuration", {}), found["chunk_key_encoding"]
    as_ours = (
        (codec["name"], more) == ("sharding_indexed", [])
        and _with_checksum(sharding["codecs"])
        and _with_checksum(sharding["index_codecs"])
        and sharding["index_location"] == "end"
        and (keys["name"], keys["configuration"]["separator"]) == ("default", "/")
    )
    if not (as_ours and array.chunks[1:] == shard_shape[1:] == array.shape[1:]):
        raise StoreError(
            f"{where}: {array.path} is not made of shards of whole rows with crc32c in chunks and index. "
            "This is not a store that python -m stages.embed wrote."
        )
    return Layout(
        np.dtype(array.dtype).newbyteorder("<"), array.shape[1:], array.chunks[0], shard_shape[0] // array.chunks[0]
    )


def _with_checksum(codecs: Sequence[Any]) -> bool:
    """Return whether these make little-endian values with a crc32c behind them. Keys unknown here are no matter."""
    names = [codec["name"] for codec in codecs]
    return names == ["bytes", "crc32c"] and codecs[0]["configuration"]["endian"] == "little"


def shard_key(name: str, axes: int, unit: int) -> str:
    """Return the path, below the store's root, of shard `unit` of a row array with so many axes."""
    return "/".join([name, "c", str(unit), *["0"] * (axes - 1)])


def read_rows(file: File, shard: Layout, start: int, out: np.ndarray) -> None:
    """Fill `out` (n, *row shape) with the rows of a shard from `start` on, reading no other chunks than these rows'.

    Args:
        file: the shard.
        shard: its layout.
        start: counted within the shard.
        out: C-contiguous, of the layout's dtype.

    Raises:
        Damage: a checksum differs, a chunk is absent, or the file is too short.
    """
    if not out.flags.c_contiguous or out.dtype != shard.dtype or out.shape[1:] != shard.row_shape:
        raise ValueError(f"out is {out.dtype}{out.shape}, not contiguous {shard.dtype}(n, {shard.row_shape})")
    chunks = range(start // shard.chunk_rows, -(-(start + len(out)) // shard.chunk_rows))
    offsets = _offsets(file, shard, chunks)
    flat = out.reshape(-1).view(np.uint8)
    for run in _runs(chunks, offsets, shard, file.run_bytes):
        _read_run(file, shard, run, offsets, start, flat)


def _offsets(file: File, shard: Layout, chunks: range) -> dict[int, int]:
    """Return where the chunks begin."""
    tail = file.tail(shard.index_bytes)
    if len(tail) < shard.index_bytes:
        raise Damage(f"is truncated: {len(tail)} bytes do not hold an index of {shard.index_bytes}")
    if crc(np.frombuffer(tail[:-CRC_BYTES], np.uint8)) != tail[-CRC_BYTES:]:
        raise Damage("is damaged or truncated: the checksum of its index differs")
    index = np.frombuffer(tail[:-CRC_BYTES], "<u8").reshape(shard.chunks, 2)
    offsets = {}
    for chunk in chunks:
        offset, size = (int(value) for value in index[chunk])
        if offset == ABSENT and size == ABSENT:
            raise Damage(f"lacks chunk {chunk}")
        if size != shard.chunk_bytes + CRC_BYTES:
            raise Damage(f"is damaged: chunk {chunk} has {size} bytes, not {shard.chunk_bytes + CRC_BYTES}")
        offsets[chunk] = offset
    return offsets


def _runs(chunks: range, offsets: dict[int, int], shard: Layout, run_bytes: int) -> Iterator[range]:
    """Split the chunks into runs that lie one after the other in the file, of about `run_bytes` at most."""
    size = shard.chunk_bytes + CRC_BYTES
    first = chunks.start
    for chunk in range(chunks.start + 1, chunks.stop + 1):
        together = chunk < chunks.stop and offsets[chunk] == offsets[chunk - 1] + size
        if not together or (chunk + 1 - first) * size > run_bytes:
            yield range(first, chunk)
            first = chunk


def _read_run(file: File, shard: Layout, run: range, offsets: dict[int, int], start: int, flat: np.ndarray) -> None:
    buffers, edges = [], []
    for chunk in run:
        low = (chunk * shard.chunk_rows - start) * shard.row_bytes  # where the chunk begins in `flat`
        high = low + shard.chunk_bytes
        if low >= 0 and high <= len(flat):
            data = flat[low:high]
        else:  # rows that nobody asked for are in it
            data = np.empty(shard.chunk_bytes, np.uint8)
            edges.append((low, data))
        buffers += [data, np.empty(CRC_BYTES, np.uint8)]
    try:
        file.fill(offsets[run.start], buffers)
    except EOFError:
        raise Damage(f"is truncated: it ends within chunks {run.start} to {run.stop - 1}") from None
    for chunk, data, stored in zip(run, buffers[::2], buffers[1::2], strict=True):
        if crc(data) != stored.tobytes():
            raise Damage(f"is damaged: the checksum of chunk {chunk} differs")
    for low, data in edges:
        first, last = max(low, 0), min(low + len(data), len(flat))
        flat[first:last] = data[first - low : last - low]


def crc(data: np.ndarray) -> bytes:
    """Return the crc32c of bytes, as it is stored."""
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")
