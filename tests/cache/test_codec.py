"""Shards are encoded and decoded as zarr-python does it, byte for byte, and no damage passes."""

import random
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from cache import schema
from cache.codec import CRC_BYTES, Damage, Layout, layout, read_rows, shard_key
from cache.errors import StoreError
from cache.files import File, LocalFiles, MemoryFile
from cache.schema import Field
from cache.writer import encode_rows

FIELDS = {
    "one-view": Field("image/a", (1, 6), "float16", ("row", "view", "feature")),
    "views": Field("image/a", (3, 5), "float16", ("row", "view", "feature")),
    "grid": Field("grid/a", (2, 4, 3), "float16", ("row", "view", "patch", "feature")),
    "lowdim": Field("lowdim/action", (7,), "float32", ("row", "action")),
}
LAYOUTS = [(1, 1), (4, 1), (3, 5), (1, 7), (2, 64)]  # rows a chunk, chunks a shard


def written(folder: Path, field: Field, chunk_rows: int, chunks: int, shards: int = 2) -> tuple[zarr.Array, Layout]:
    """Write an array of random values with zarr-python."""
    root = zarr.create_group(folder, overwrite=True)
    rows = shards * chunk_rows * chunks
    schema.create_field(root, field, rows, chunk_rows * chunks, chunk_rows)
    array = root[field.name]
    assert isinstance(array, zarr.Array)
    array[...] = np.random.default_rng(0).normal(size=array.shape).astype(field.dtype)
    return array, layout(array, "store")


def shard(folder: Path, field: Field, unit: int) -> Path:
    return folder / shard_key(field.name, 1 + len(field.shape), unit)


def decoded(content: bytes, shape: Layout, start: int, rows: int) -> np.ndarray:
    out = np.empty((rows, *shape.row_shape), shape.dtype)
    read_rows(MemoryFile(content), shape, start, out)
    return out


@pytest.mark.parametrize("chunk_rows, chunks", LAYOUTS)
@pytest.mark.parametrize("name", FIELDS)
def test_equals_zarr_python(tmp_path: Path, name: str, chunk_rows: int, chunks: int) -> None:
    field = FIELDS[name]
    array, shape = written(tmp_path, field, chunk_rows, chunks)
    rows = chunk_rows * chunks
    rng = random.Random(0)
    ranges = [(0, rows), (0, 1), (rows - 1, rows)] + [
        tuple(sorted((rng.randint(0, rows), rng.randint(0, rows)))) for _ in range(10)
    ]
    for unit in range(2):
        for start, stop in ranges:
            expected = np.asarray(array[unit * rows + start : unit * rows + stop])
            for files in (LocalFiles(str(tmp_path)), None):
                out = np.empty_like(expected)
                path = shard(tmp_path, field, unit)
                if files:
                    with files.open(str(path.relative_to(tmp_path))) as file:
                        read_rows(file, shape, start, out)
                else:
                    read_rows(MemoryFile(path.read_bytes()), shape, start, out)
                assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("chunk_rows, chunks", LAYOUTS)
@pytest.mark.parametrize("name", FIELDS)
def test_encodes_as_zarr_python_does(tmp_path: Path, name: str, chunk_rows: int, chunks: int) -> None:
    field = FIELDS[name]
    array, shape = written(tmp_path, field, chunk_rows, chunks, shards=1)
    whole = np.asarray(array[...])
    for rows in sorted({1, len(whole) // 2, len(whole) - 1, len(whole)} - {0}):
        array[rows:] = np.nan
        array[:rows] = whole[:rows]
        assert encode_rows(shape, whole[:rows]).tobytes() == shard(tmp_path, field, 0).read_bytes()


def test_chunks_in_any_order(tmp_path: Path) -> None:
    field = FIELDS["views"]
    array, shape = written(tmp_path, field, 2, 8, shards=1)
    path = shard(tmp_path, field, 0)
    content, size = path.read_bytes(), shape.chunk_bytes + CRC_BYTES
    order = random.Random(1).sample(range(8), 8)
    index = np.array([[order.index(chunk) * size, size] for chunk in range(8)], "<u8").tobytes()
    index += int(google_crc32c.value(index)).to_bytes(4, "little")
    path.write_bytes(b"".join(content[c * size : (c + 1) * size] for c in order) + index)
    expected = np.asarray(array[...])  # zarr-python agrees that this is a shard
    for start, stop in ((0, 16), (3, 14), (5, 6)):
        np.testing.assert_array_equal(decoded(path.read_bytes(), shape, start, stop - start), expected[start:stop])


class Recorded(File):
    """Notes what is read."""

    run_bytes = 1 << 20

    def __init__(self, content: bytes) -> None:
        self._file = MemoryFile(content)
        self.bytes = 0

    def tail(self, size: int) -> bytes:
        self.bytes += size
        return self._file.tail(size)

    def fill(self, offset: int, buffers: list[np.ndarray]) -> None:
        self.bytes += sum(len(buffer) for buffer in buffers)
        self._file.fill(offset, buffers)


def test_reads_no_more_than_it_needs(tmp_path: Path) -> None:
    field = FIELDS["lowdim"]
    _, shape = written(tmp_path, field, 4, 16, shards=1)
    file = Recorded(shard(tmp_path, field, 0).read_bytes())
    read_rows(file, shape, 9, np.empty((8, 7), np.float32))  # rows 9 to 16: of chunks 2, 3, 4
    assert file.bytes == shape.index_bytes + 3 * (shape.chunk_bytes + CRC_BYTES)


def test_no_bit_can_flip_unseen(tmp_path: Path) -> None:
    field = FIELDS["views"]
    _, shape = written(tmp_path, field, 2, 4, shards=1)
    content = shard(tmp_path, field, 0).read_bytes()
    size = shape.chunk_bytes + CRC_BYTES
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        where = f"chunk {position // size}" if position < 4 * size else "index"
        with pytest.raises(Damage, match=where):
            decoded(bytes(flipped), shape, 0, 8)


def test_no_byte_can_be_lost_unseen(tmp_path: Path) -> None:
    field = FIELDS["views"]
    _, shape = written(tmp_path, field, 2, 4, shards=1)
    path = shard(tmp_path, field, 0)
    content = path.read_bytes()
    for length in range(len(content)):
        with pytest.raises(Damage, match="truncated"):
            decoded(content[:length], shape, 0, 8)
    # The start is lost, the index is whole and points beyond the end.
    path.write_bytes(content[-shape.index_bytes - 5 :])
    with LocalFiles(str(tmp_path)).open(str(path.relative_to(tmp_path))) as file, pytest.raises(Damage):
        read_rows(file, shape, 0, np.empty((8, 3, 5), np.float16))


def test_an_absent_chunk_is_named(tmp_path: Path) -> None:
    field = FIELDS["lowdim"]
    array, shape = written(tmp_path, field, 4, 4, shards=1)
    block = np.asarray(array[...])
    block[8:12] = np.nan
    array[...] = block
    content = shard(tmp_path, field, 0).read_bytes()
    np.testing.assert_array_equal(decoded(content, shape, 0, 8), block[:8])
    with pytest.raises(Damage, match="lacks chunk 2"):
        decoded(content, shape, 7, 2)


def test_out_must_fit(tmp_path: Path) -> None:
    _, shape = written(tmp_path, FIELDS["lowdim"], 4, 1, shards=1)
    file = MemoryFile(shard(tmp_path, FIELDS["lowdim"], 0).read_bytes())
    for out in (np.empty((4, 7)), np.empty((4, 6), np.float32), np.empty((4, 14), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match="not contiguous float32"):
            read_rows(file, shape, 0, out)


@pytest.mark.parametrize(
    "change",
    [
        {"serializer": BytesCodec(endian="big")},
        {"compressors": ()},
        {"shards": {"shape": (8, 7), "index_location": "start"}},
        {"shards": None},
        {"chunks": (4, 1)},
        {"chunk_key_encoding": {"name": "default", "separator": "."}},
    ],
    ids=["big-endian", "no-crc32c", "index-first", "unsharded", "part-rows", "keys"],
)
def test_other_encodings_are_refused(tmp_path: Path, change: dict) -> None:
    settings = {"shape": (8, 7), "dtype": "float32", "chunks": (4, 7), "shards": (8, 7), "compressors": Crc32cCodec()}
    array = zarr.create_array(tmp_path / "a", **{**settings, **change})
    with pytest.raises(StoreError, match="not made of shards of whole rows"):
        layout(array, "store")


def test_what_a_newer_zarr_adds_to_its_metadata_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array, shape = written(tmp_path, FIELDS["one-view"], 4, 4)
    real = type(array.metadata).to_dict

    def more(value: Any) -> Any:
        if isinstance(value, dict):
            return {**{name: more(part) for name, part in value.items()}, "added": None}
        return tuple(map(more, value)) if isinstance(value, (list, tuple)) else value

    monkeypatch.setattr(type(array.metadata), "to_dict", lambda self: more(real(self)))
    assert layout(array, "store") == shape


def test_a_damaged_local_file_is_the_same_as_one_in_memory(tmp_path: Path) -> None:
    field = FIELDS["one-view"]
    _, shape = written(tmp_path, field, 4, 4, shards=1)
    path = shard(tmp_path, field, 0)
    content = path.read_bytes()
    out = np.empty((16, 1, 6), np.float16)
    for damaged in (content[:-1], content[:7], b"", content[:60] + content[61:], content[:9] + b"x" + content[10:]):
        path.write_bytes(damaged)
        with LocalFiles(str(tmp_path)).open(str(path.relative_to(tmp_path))) as file, pytest.raises(Damage) as local:
            read_rows(file, shape, 0, out)
        with pytest.raises(Damage) as memory:
            read_rows(MemoryFile(damaged), shape, 0, out)
        assert str(local.value) == str(memory.value)
