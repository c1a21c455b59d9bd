import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from pipeline.libero.headless import package_dir, write_config


@pytest.mark.sim
def test_import_asks_nothing_and_says_nothing(tmp_path: Path) -> None:
    program = (
        "from pipeline.libero import headless; headless.CONFIG_DIR; headless.import_libero();"
        "import robosuite, libero.libero; libero.libero.get_libero_path('bddl_files')"
    )
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (tmp_path / ".libero").exists()


def test_config_holds_what_libero_reads(tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path / "new").read_text())
    assert set(config) == {"benchmark_root", "bddl_files", "init_states", "datasets", "assets"}
    assert config["bddl_files"] == str(package_dir() / "bddl_files")
    assert Path(config["init_states"]).is_dir()


def test_config_is_written_by_many_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("of an older installation")
    with ThreadPoolExecutor(16) as pool:
        contents = {path.read_text() for path in pool.map(write_config, [tmp_path] * 64)}
    assert len(contents) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    before = (tmp_path / "config.yaml").stat().st_mtime_ns
    write_config(tmp_path)
    assert (tmp_path / "config.yaml").stat().st_mtime_ns == before
