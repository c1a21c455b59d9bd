"""Publishing is all or nothing wherever it is stopped; a full or read-only disk is told before the work."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError, PipelineError
from pipeline.files import exclusive, publish_directory, require_writable, restore_directory, write_atomic_with
from tests.disk import read_only_disk, small_disk
from tests.imports import ROOT


def directory(path: Path, text: str) -> Path:
    (path / "below").mkdir(parents=True)
    (path / "below/file").write_text(text)
    (path / "link").symlink_to("/nowhere")
    return path


def test_a_directory_replaces_an_older_one(tmp_path: Path) -> None:
    final = tmp_path / "out/final"
    for text in ("old", "new"):
        publish_directory(directory(tmp_path / "ready", text), final)
        assert (final / "below/file").read_text() == text
        assert [path.name for path in tmp_path.rglob("*")] == ["out", "final", "below", "link", "file"]


def test_a_directory_from_another_file_system(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        publish_directory(directory(disk / "ready", "new"), tmp_path / "final")
        assert not list(disk.iterdir())
    assert (tmp_path / "final/below/file").read_text() == "new"
    assert (tmp_path / "final/link").is_symlink()


def test_stopped_anywhere_it_leaves_a_whole_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call that touches the disk in turn is the one before which the process is killed."""
    for kill in range(30):
        calls, final = [0], tmp_path / f"{kill}/final"
        publish_directory(directory(tmp_path / f"{kill}/old", "old"), final)
        ready = directory(tmp_path / f"{kill}/ready", "new")

        def killing(real: Callable, calls: list[int] = calls, kill: int = kill) -> Callable:
            def wrapped(*args: Any, **options: Any) -> Any:
                calls[0] += 1
                if calls[0] == kill + 1:
                    raise KeyboardInterrupt
                return real(*args, **options)

            return wrapped

        with monkeypatch.context() as patched:
            for owner, name in ((Path, "rename"), (shutil, "rmtree"), (os, "fsync")):
                patched.setattr(owner, name, killing(getattr(owner, name)))
            try:
                publish_directory(ready, final)
                assert kill == 8  # three of fsync, two of rmtree, two of rename, one of fsync more: all tried
                break
            except KeyboardInterrupt:
                pass
        restore_directory(final)
        assert (final / "below/file").read_text() == ("old" if ready.exists() else "new")
        publish_directory(ready if ready.exists() else directory(ready, "new"), final)
        assert sorted(path.name for path in final.parent.iterdir()) == ["final"]


def test_a_write_that_fails_leaves_nothing_half(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        (disk / "file").write_text("old")
        with pytest.raises(OSError, match="No space left"):
            write_atomic_with(disk / "file", lambda partial: partial.write_bytes(bytes(10**6)))
        assert [path.name for path in disk.iterdir()] == ["file"]
        assert (disk / "file").read_text() == "old"


def test_a_full_disk_is_told_before_the_work(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        require_writable(disk / "not/there/yet", 900 * 1024)
        assert not list(disk.iterdir())
        with pytest.raises(PipelineError, match=r"disk/a: needs 2.0 MiB, and 1.0 MiB are free there. Make room"):
            require_writable(disk / "a", 2 * 2**20)


def test_a_read_only_disk_is_told_before_the_work(tmp_path: Path) -> None:
    with (
        read_only_disk(tmp_path / "disk") as disk,
        pytest.raises(PipelineError, match=r"disk/runs: cannot be written: Read-only file system. Put that right"),
    ):
        require_writable(disk / "runs")
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match=r"file/runs: cannot be written: Not a directory"):
        require_writable(tmp_path / "file/runs")


HOLDER = """
import sys, time
from pathlib import Path
from pipeline.files import exclusive
with exclusive(Path(sys.argv[1]), "work"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "work/lock"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            for _ in range(2):  # whoever asks does not wipe out who holds it
                with (
                    pytest.raises(DataError, match=rf"another process is at this very work \(process {holder.pid}\)"),
                    exclusive(lock, "work"),
                ):
                    pass
        finally:
            holder.send_signal(signal.SIGKILL)
    assert lock.exists()
    with exclusive(lock, "work"):
        pass
    assert not lock.exists()
