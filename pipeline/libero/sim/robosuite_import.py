"""Import LIBERO and robosuite with the assets asked for, without a log file in /tmp or a word on stderr.

LIBERO reads where its files lie from a config file, robosuite opens /tmp/robosuite.log (which another user may own)
and prints three warnings. All of that is decided while they are imported, so everything here happens before. Nothing
in site-packages is touched.
"""

import hashlib
import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import ModuleType

import yaml

from pipeline.errors import SimulatorError
from pipeline.files import write_atomic
from pipeline.libero.installation import STATE_DIR, package_dir
from pipeline.libero.sim.robosuite_patches import cache_no_files

_lock = threading.Lock()


def write_config(assets: Path, directory: Path = STATE_DIR) -> Path:
    """Write LIBERO's config.yaml for these assets below `directory`, atomically and only if it differs.

    Processes that write it at the same time write the same: one directory of assets has one file.

    Returns:
        The file, in a directory of its own.
    """
    root = package_dir()
    content = yaml.safe_dump(
        {
            "benchmark_root": str(root),
            "bddl_files": str(root / "bddl_files"),
            "init_states": str(root / "init_files"),
            "datasets": str(root.parent / "datasets"),
            "assets": str(assets),
        }
    )
    path = directory / "config" / hashlib.sha256(str(assets).encode()).hexdigest()[:16] / "config.yaml"
    if not path.is_file() or path.read_text() != content:
        write_atomic(path, content)
    return path


def import_libero(assets: Path) -> ModuleType:
    """Return the module `libero.libero.envs.env_wrapper`, imported with no prompt and no output.

    MUJOCO_GL must have been chosen before: see `pipeline.libero.sim.gl.activate`.

    Args:
        assets: the directory that LIBERO loads objects and scenes from.

    Raises:
        SimulatorError: this process has loaded it with other assets. LIBERO keeps them.
    """
    with _lock:
        config = str(write_config(assets).parent)
        used = os.environ.get("LIBERO_CONFIG_PATH")
        if "libero.libero.envs.env_wrapper" in sys.modules and used != config:
            raise SimulatorError(f"this process uses LIBERO by {used}. Use the assets in {assets} in another process.")
        os.environ["LIBERO_CONFIG_PATH"] = config
        if "robosuite" not in sys.modules:
            cache_no_files()
            _preload_robosuite_macros()
        return importlib.import_module("libero.libero.envs.env_wrapper")


def _preload_robosuite_macros() -> None:
    """Put robosuite's settings modules in place before robosuite reads them."""
    package = importlib.util.find_spec("robosuite")
    if package is None or package.origin is None:
        raise SimulatorError("robosuite is not installed. Run: make setup")
    spec = importlib.util.spec_from_file_location("robosuite.macros", Path(package.origin).parent / "macros.py")
    assert spec is not None and spec.loader is not None
    macros = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.__dict__.update(FILE_LOGGING_LEVEL=None, CONSOLE_LOGGING_LEVEL="ERROR", MUJOCO_GPU_RENDERING=False)
    sys.modules["robosuite.macros"] = macros
    # Its absence is what the three warnings are about.
    sys.modules.setdefault("robosuite.macros_private", ModuleType("robosuite.macros_private"))
