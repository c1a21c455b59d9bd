"""No bit of a bundle can change without being noticed, and there is a whole one at any time."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from pipeline.errors import DataError
from pipeline.policy import bundle
from pipeline.policy.network import PolicyNetwork
from tests.disk import read_only_disk
from tests.flips import flipped_bits
from tests.policy.test_network import small_architecture, spec


@pytest.fixture
def path(tmp_path: Path) -> Path:
    arch = small_architecture()
    tower = {"visual.x": torch.zeros(3)}
    made = spec(arch)
    bundle.save(tmp_path / "policy", PolicyNetwork(arch), type(made)(**{**vars(made), "tune": "lora"}), tower)
    return tmp_path / "policy"


def test_each_of_500_flipped_bits_is_noticed(path: Path) -> None:
    files = sorted(path.iterdir())
    assert len(files) == 3
    for file in flipped_bits(files, 500):
        with pytest.raises(DataError, match=f"^{file}: .*rain"):
            bundle.load(path)
    bundle.load(path)


@pytest.mark.parametrize(("old", "new"), [(b'": ', b'":  '), (b"\n}", b"}"), (b'"tune"', b'"tune" ')])
def test_a_description_written_in_another_way_is_noticed(path: Path, old: bytes, new: bytes) -> None:
    file = path / "policy.json"
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    with pytest.raises(DataError, match=r"policy.json: has changed since it was written"):
        bundle.load_spec(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "encoder.safetensors"])
def test_the_digest_of_weights_is_of_sound_ones(path: Path, name: str) -> None:
    before = bundle.weights_digest(path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    both = f"its SHA-256 is [0-9a-f]{{64}}, and policy.json says {hashlib.sha256(content).hexdigest()}"
    with pytest.raises(DataError, match=rf"{name}: has changed since it was written: {both}"):
        bundle.weights_digest(path)
    (path / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: not found or not readable.*Train again"):
        bundle.weights_digest(path)
    (path / name).write_bytes(content)
    assert bundle.weights_digest(path) == before


def test_files_have_the_modes_that_the_umask_leaves(tmp_path: Path) -> None:
    arch = small_architecture()
    before = os.umask(0o027)
    try:
        bundle.save(tmp_path / "policy", PolicyNetwork(arch), spec(arch))
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "policy").iterdir()} == {"0o640"}


def test_a_bundle_that_a_kill_left_aside_is_loaded(path: Path) -> None:
    """Killed between the two renames of a publication."""
    digest = bundle.weights_digest(path)
    path.rename(path.with_name(".policy.replaced.partial"))
    assert bundle.weights_digest(path) == digest
    assert not path.exists(), "a reader changes nothing: a training may be publishing at this moment"


def test_a_bundle_on_a_read_only_disk_is_loaded(path: Path) -> None:
    with read_only_disk(path.parent / "disk", path) as disk:
        assert bundle.load(disk / "policy").spec.tune == "lora"
        with pytest.raises(DataError, match="not found"):
            bundle.load(disk / "other")
