import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from pipeline.libero.installation import assets_dir, package_dir
from pipeline.libero.sim.robosuite_import import write_config


@pytest.mark.sim
def test_import_asks_nothing_and_says_nothing(tmp_path: Path) -> None:
    program = (
        "from pipeline.libero.installation import assets_dir;"
        "from pipeline.libero.sim.robosuite_import import import_libero; import_libero(assets_dir());"
        "import robosuite, libero.libero; libero.libero.get_libero_path('bddl_files')"
    )
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (tmp_path / ".libero").exists()


def test_config_holds_what_libero_reads(tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path / "assets", tmp_path / "new").read_text())
    assert set(config) == {"benchmark_root", "bddl_files", "init_states", "datasets", "assets"}
    assert config["bddl_files"] == str(package_dir() / "bddl_files")
    assert config["assets"] == str(tmp_path / "assets")
    assert Path(config["init_states"]).is_dir()


def test_config_is_written_by_many_at_once(tmp_path: Path) -> None:
    path = write_config(assets_dir(), tmp_path)
    path.write_text("of an older installation")
    with ThreadPoolExecutor(16) as pool:
        paths = set(pool.map(write_config, [assets_dir()] * 64, [tmp_path] * 64))
    assert paths == {path}
    assert yaml.safe_load(path.read_text())["assets"] == str(assets_dir())
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]
    before = path.stat().st_mtime_ns
    write_config(assets_dir(), tmp_path)
    assert path.stat().st_mtime_ns == before


def test_other_assets_have_another_file(tmp_path: Path) -> None:
    assert write_config(tmp_path / "a", tmp_path) != write_config(tmp_path / "b", tmp_path)
