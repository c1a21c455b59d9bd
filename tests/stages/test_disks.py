"""A disk that is full or read-only is told before the work of a stage, not after it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.libero.demos import collect
from stages import demos, embed, train_flow
from tests import base
from tests.disk import read_only_disk, small_disk
from tests.stages.embedding import SUITE, arguments, demonstrations
from tests.stages.test_train_flow import project

__all__ = ["project"]  # the fixture


def unexpected(*_: Any, **__: Any) -> None:
    raise AssertionError("the work has begun")


@pytest.mark.parametrize("option", ["--out", "--scratch"])
def test_training(project: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr("pipeline.train.job.train", unexpected)
    with (
        read_only_disk(project / "ro") as disk,
        pytest.raises(PipelineError, match=r"ro/x: cannot be written: Read-only file system"),
    ):
        train_flow.main(["--track", option, str(disk / "x")])
    with (
        small_disk(project / "full", 12) as disk,
        pytest.raises(PipelineError, match=r"full/x: needs 0\.\d MiB, and 0\.0 MiB are free there. Make room"),
    ):
        train_flow.main(["--track", option, str(disk / "x")])


def test_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demonstrations(tmp_path)
    monkeypatch.setattr("cache.build.build", unexpected)
    argv = arguments(tmp_path, tmp_path)
    for option in ("--out", "--scratch"):
        with (
            read_only_disk(tmp_path / f"ro{option}") as disk,
            pytest.raises(PipelineError, match=r"x(/libero_spatial)?: cannot be written: Read-only file system"),
        ):
            embed.main([*argv, option, str(disk / "x")])
    with (
        small_disk(tmp_path / "full", 16) as disk,
        pytest.raises(
            PipelineError, match=r"x(/libero_spatial)?: needs 0\.\d MiB, and 0\.0 MiB are free there. Make room"
        ),
    ):
        embed.main([*argv, "--scratch", str(disk / "x")])
    with small_disk(tmp_path / "half", 16) as disk:  # what is there already of this very build needs no more room
        monkeypatch.setattr("pipeline.embed.job.bytes_below", lambda folder: 10**9 * (folder.parent.name == SUITE))
        with pytest.raises(AssertionError, match="the work has begun"):
            embed.main([*argv, "--scratch", str(disk / "x")])


def test_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "collect", unexpected)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(base.tree()))
    argv = ["--params", str(tmp_path / "params.yaml"), "--out", str(tmp_path / "o"), "--scratch", str(tmp_path / "s")]
    for option in ("--out", "--scratch"):
        with (
            read_only_disk(tmp_path / f"ro{option}") as disk,
            pytest.raises((PipelineError, OSError), match="Read-only file system"),
        ):
            demos.main([*argv, option, str(disk / "x")])
