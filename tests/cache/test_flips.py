"""No bit of a store can change, and no file come or go, without `verify` telling which."""

import shutil
from pathlib import Path

import pytest

from cache.build import build
from cache.errors import StoreError
from cache.verify import verify
from tests.cache.synthetic import TEXT, MakeFake, make_plan, tree
from tests.flips import flipped_bits

LENGTHS = (3, 6)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 9 rows, which is verified in no time."""
    build(make_plan(LENGTHS, 8, 4), TEXT, MakeFake(lengths=LENGTHS), tmp_path / "s.zarr", tmp_path / "work")
    return tmp_path / "s.zarr"


def found(store: Path) -> str:
    """Return what an opening or else `verify` has to say; nothing of a sound store."""
    try:
        return "\n".join(map(str, verify(store)))
    except StoreError as error:
        return str(error)


def test_each_of_500_flipped_bits_is_noticed(store: Path) -> None:
    for path in flipped_bits(sorted(path for path in store.rglob("*") if path.is_file()), 500):
        assert str(store) in found(store), path
    assert found(store) == ""


def test_metadata_written_in_another_way_is_noticed(store: Path) -> None:
    """Also where the JSON means the same."""
    for path in sorted(store.rglob("zarr.json")):
        content = path.read_bytes()
        path.write_bytes(content.replace(b": ", b":", 1))
        assert f"{path} has changed since it was written" in found(store)
        path.write_bytes(content)


def test_each_missing_file_is_named(store: Path) -> None:
    for name, content in tree(store).items():
        path = store / name
        path.unlink()
        told = found(store)
        array = name.removesuffix("/zarr.json").partition("/c/")[0]
        unfinished = array == "integrity/sha256" and "never finished" in told
        assert array in told or unfinished or (name == "zarr.json" and "no embedding store there" in told), name
        path.write_bytes(content)
    assert found(store) == ""


def test_what_is_there_besides_is_named(store: Path) -> None:
    extra = ("notes.txt", "image/agentview/c/9/0/0", "grid/agentview/zarr.json")
    for name in extra:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("{}")
    assert found(store).splitlines() == [f"{name}: is no file of the store; delete it" for name in sorted(extra)]


def test_a_store_of_an_older_layout_gives_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> list[str]:
        calls = tmp_path / "calls"
        calls.write_text("")
        build(make_plan(), TEXT, MakeFake(calls), tmp_path / "s.zarr", tmp_path / "work", keep=tmp_path / "keep")
        return calls.read_text().split()

    with monkeypatch.context() as older:
        for module in ("plan", "reader", "schema"):
            older.setattr(f"cache.{module}.SCHEMA_VERSION", 2)
        assert len(make()) == 6
    assert "has schema 2, this version reads 3" in found(tmp_path / "s.zarr")
    assert make() == []
    assert found(tmp_path / "s.zarr") == ""
    shutil.rmtree(tmp_path / "s.zarr")
