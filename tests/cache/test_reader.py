"""Damage is refused by name, in reading and in verifying; never read as zeros."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cache import open_store
from cache.__main__ import main
from cache.build import is_current
from cache.errors import StoreError
from cache.verify import verify
from tests.cache.synthetic import expected, make_plan


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "s.zarr")


def shard(store: Path, array: str, unit: int) -> Path:
    return store / array / "c" / str(unit) / ("0/0" if array.startswith("image") else "0")


def test_slices(sound: Path) -> None:
    whole = expected(make_plan())
    for name in ("image/eye_in_hand", "lowdim/action"):
        for start, stop in ((0, 87), (0, 16), (3, 5), (15, 17), (16, 64), (37, 87), (80, 200), (5, 5)):
            np.testing.assert_array_equal(open_store(sound).read(name, start, stop), whole[name][start:stop])


def test_reads_into_memory_it_is_given(sound: Path) -> None:
    store = open_store(sound)
    out = np.zeros((60, 2, 6), np.float16)
    assert store.read("image/agentview", 20, 80, out) is out
    np.testing.assert_array_equal(out, expected(make_plan())["image/agentview"][20:80])
    with pytest.raises(ValueError, match="counted from the front"):
        store.read("image/agentview", -3)
    with pytest.raises(ValueError, match=r"rows 20:87 of image/agentview have \(67, 2, 6\)"):
        store.read("image/agentview", 20, 90, out)


def test_a_sound_store_verifies(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(sound) == []
    main(["verify", str(sound)])
    assert capsys.readouterr().out == f"{sound}: sound\n"
    main(["info", str(sound)])
    out = capsys.readouterr().out
    assert "87 rows" not in out
    assert "rows         87 in 8 episodes of 2 tasks" in out
    assert "(87, 2, 6)" in out
    assert "7  open the drawer" in out


@pytest.mark.parametrize("position", [10, -100, -8], ids=["data", "data-end", "index"])
@pytest.mark.parametrize("array", ["image/agentview", "lowdim/action"])
def test_a_flipped_bit(store: Path, array: str, position: int) -> None:
    path = shard(store, array, 2)
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"shard 2 of {array} is damaged"):
        open_store(store).read(array)
    assert [(p.array, p.unit) for p in verify(store)] == [(array, 2)]
    with pytest.raises(SystemExit, match=r"1 problem$"):
        main(["verify", str(store)])


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_truncated_shard(store: Path, keep: int) -> None:
    path = shard(store, "image/agentview", 1)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match="shard 1 of image/agentview"):
        open_store(store).read("image/agentview")
    assert [(p.array, p.unit) for p in verify(store)] == [("image/agentview", 1)]


def test_a_missing_shard_is_no_zeros(store: Path) -> None:
    shard(store, "lowdim/joint_pos", 5).unlink()
    opened = open_store(store)
    assert len(opened.read("lowdim/joint_pos", 0, 80)) == 80
    with pytest.raises(StoreError, match="shard 5 of lowdim/joint_pos is missing"):
        opened.read("lowdim/joint_pos")
    assert [(p.array, p.unit) for p in verify(store)] == [("lowdim/joint_pos", 5)]


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_missing_chunk_within_a_shard(store: Path, lost: int) -> None:
    array = zarr.open_array(store / "lowdim/action", mode="r+")
    block = array[16:32]
    block[4 * lost : 4 * lost + 4] = np.nan
    array[16:32] = block
    for start in (0, 16 + 4 * lost, 18 + 4 * lost):
        with pytest.raises(StoreError, match=f"shard 1 of lowdim/action lacks chunk {lost}"):
            open_store(store).read("lowdim/action", start)


def test_shards_that_changed_places(store: Path) -> None:
    a, b = shard(store, "lowdim/action", 0), shard(store, "lowdim/action", 1)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert [(p.array, p.unit) for p in verify(store)] == [("lowdim/action", 0), ("lowdim/action", 1)]


@pytest.mark.parametrize("table", ["episode/start", "episode/task", "episode/source", "text/embedding"])
def test_a_missing_table(store: Path, table: str) -> None:
    shutil.rmtree(store / table / "c")
    with pytest.raises(StoreError, match=f"{table} is missing"):
        verify(store)


@pytest.mark.parametrize("table", ["episode/start", "episode/length", "episode/task", "text/task"])
def test_another_index_than_was_written(store: Path, table: str) -> None:
    array = zarr.open_array(store / table, mode="r+")
    array[...] = array[...] + np.arange(len(array[...])) % 2
    with pytest.raises(StoreError, match=r"Delete the store and build it"):
        open_store(store)


@pytest.mark.parametrize(
    ("table", "index", "text"), [("episode/source", 2, "x.hdf5/demo_1"), ("text/instruction", 0, "lift the cup")]
)
def test_other_texts_than_were_written(store: Path, table: str, index: int, text: str) -> None:
    array = zarr.open_array(store / table, mode="r+")
    array[index] = text
    with pytest.raises(StoreError, match=r"s.zarr/zarr.json: the attributes, or the tables .* fingerprint is '96c0"):
        open_store(store)


def test_other_instruction_embeddings_than_were_written(store: Path) -> None:
    array = zarr.open_array(store / "text/embedding", mode="r+")
    array[1] = array[0]
    assert [(p.array, p.unit) for p in verify(store)] == [("text/embedding/c/0/0", None)]


def changes(attrs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the attributes, each with one value changed or one key gone."""
    for key, value in attrs.items():
        yield {name: other for name, other in attrs.items() if name != key}
        if isinstance(value, dict):
            yield from ({**attrs, key: changed} for changed in changes(value))
        else:
            yield {**attrs, key: value + 1 if isinstance(value, int) else value + type(value)("x")}


def test_any_change_of_the_attributes_is_refused(store: Path) -> None:
    """What a store says of itself (encoder, obs_shift, rows...) is what it was built with, or it is not opened."""
    path = store / "zarr.json"
    metadata = json.loads(path.read_text())
    changed = list(changes(metadata["attributes"]))
    assert len(changed) == 22
    for attributes in changed:
        path.write_text(json.dumps({**metadata, "attributes": attributes}))
        with pytest.raises(StoreError, match=rf"^{store}.*(Delete the store and b|B)uild it: python -m stages.embed"):
            open_store(store)
        assert not is_current(store, make_plan())


def test_what_is_no_store(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no embedding store there. Build it: python -m stages.embed"):
        open_store(tmp_path / "nothing")
    with pytest.raises(SystemExit, match=r"error: .*no embedding store"):
        main(["info", str(tmp_path / "nothing")])
    zarr.create_group(tmp_path / "v2", zarr_format=2)
    with pytest.raises(StoreError):
        open_store(tmp_path / "v2")
    zarr.create_group(tmp_path / "v3")
    with pytest.raises(StoreError, match="has schema None, this version reads 3"):
        open_store(tmp_path / "v3")
    with pytest.raises(StoreError, match=r"no array 'image/top'; it has image/agentview"):
        open_store(store).read("image/top")
    (store / "zarr.json").write_text("{")
    with pytest.raises(StoreError):
        open_store(store)


def test_an_unfinished_store(store: Path) -> None:
    shutil.rmtree(store / "integrity")
    with pytest.raises(StoreError, match="the build was never finished"):
        open_store(store)


def test_attributes_that_contradict_the_arrays(store: Path) -> None:
    root = zarr.open_group(store, mode="r+")
    root.attrs["shard_rows"] = 8
    with pytest.raises(StoreError, match=r"image/agentview has 96 rows, 16 a shard; .* there are 11 shards of 8"):
        open_store(store)


@pytest.mark.parametrize("codec", ["zstd", "numcodecs.pickle"])
def test_codecs_off_the_list(store: Path, codec: str) -> None:
    path = store / "lowdim/action/zarr.json"
    metadata = json.loads(path.read_text())
    metadata["codecs"][0]["configuration"]["codecs"].append({"name": codec, "configuration": {}})
    path.write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match=f"lowdim/action.*{codec}"):
        open_store(store)
