"""The examples of docs/store.md run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cache import open_store
from cache.build import build
from tests.cache.synthetic import LENGTHS, TEXT, MakeFake, expected, make_plan

ROOT = Path(__file__).parents[2]
TEXT_OF_PAGE = (ROOT / "docs/store.md").read_text()
PLAIN, OURS, UPLOAD = re.findall(r"```python\n(.*?)```", TEXT_OF_PAGE, re.S)
LONGER = (*LENGTHS, 150)
PATH = "data/embeddings/libero_spatial.zarr"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a store where the examples look for it."""
    build(make_plan(LONGER), TEXT, MakeFake(lengths=LONGER), tmp_path / PATH, tmp_path / "work")
    return tmp_path


def run(code: str, folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plain_zarr_reads_it_without_our_code(folder: Path) -> None:
    check = """
import sys
ours = [name for name in sys.modules if name.split(".")[0] in ("cache", "pipeline", "stages", "tests")]
assert not ours, ours
print(repr(float(action[start : start + length].astype("f8").sum())))
"""
    lines = run(PLAIN + check, folder, "-I").splitlines()  # -I: neither the directory nor PYTHONPATH is searched
    assert lines[:2] == ["file0/demo_3 - open the drawer", "(8, 6) (8, 7)"]
    action = expected(make_plan(LONGER))["lowdim/action"][27:35]
    assert float(lines[2]) == pytest.approx(float(action.astype("f8").sum()))


def test_this_project_reads_it(folder: Path) -> None:
    shown = "\nprint(features.shape, some.shape, batch.rows.shape, store.read('image/eye_in_hand').shape)"
    assert run(OURS + shown, folder).strip() == "(237, 2, 6) (100, 7) (109,) (237, 2, 6)"


def test_the_upload_is_readable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(UPLOAD.replace("s3://bucket", "memory://bucket"), {})  # test_remote.py uploads in this way to an S3 server
    values = open_store("memory://bucket/libero_spatial.zarr").read("lowdim/action")
    np.testing.assert_array_equal(values, expected(make_plan(LONGER))["lowdim/action"])
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
