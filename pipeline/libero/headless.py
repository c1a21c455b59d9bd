"""Import LIBERO and robosuite without a prompt, a log file in /tmp or a word on stderr.

`import libero.libero` asks a question with `input()` when it finds no config file, robosuite opens /tmp/robosuite.log
(which another user may own) and prints three warnings. All of that is decided while they are imported, so everything
here happens before. Nothing in site-packages is touched.
"""

import importlib.util
import os
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

import yaml

from pipeline.errors import SimulatorError

CONFIG_DIR = Path(__file__).resolve().parents[2] / ".libero"
"""The project's own LIBERO_CONFIG_PATH; ignored by git."""

_lock = threading.Lock()


@cache
def package_dir() -> Path:
    """Return hf-libero's `libero/libero` directory, without importing it.

    Raises:
        SimulatorError: hf-libero is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / "libero" / "bddl_files").is_dir():
            return Path(root) / "libero"
    raise SimulatorError("LIBERO is not installed: no package 'libero' with bddl_files. Run: make setup")


def write_config(directory: Path = CONFIG_DIR) -> Path:
    """Write LIBERO's config.yaml into `directory`, atomically and only if it differs; return its path.

    Its content depends on the installation only, so processes that write it at the same time write the same.
    """
    root = package_dir()
    content = yaml.safe_dump(
        {
            "benchmark_root": str(root),
            "bddl_files": str(root / "bddl_files"),
            "init_states": str(root / "init_files"),
            "datasets": str(root.parent / "datasets"),
            "assets": str(root / "assets"),
        }
    )
    path = directory / "config.yaml"
    if path.is_file() and path.read_text() == content:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=directory, suffix=".partial", delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)
    return path


def import_libero() -> ModuleType:
    """Return the module `libero.libero.envs.env_wrapper`, imported with no input() and no output.

    MUJOCO_GL must have been chosen before: see `pipeline.libero.gl.activate`.
    """
    with _lock:
        if "libero.libero" not in sys.modules:
            os.environ["LIBERO_CONFIG_PATH"] = str(write_config().parent)
        if "robosuite" not in sys.modules:
            _preload_robosuite_macros()
        return importlib.import_module("libero.libero.envs.env_wrapper")


def use_assets(directory: Path) -> None:
    """Make LIBERO load objects and scenes from `directory`. Holds for the whole process until called again."""
    import_libero()
    # get_assets_path() returns this variable when it is set, and else downloads.
    sys.modules["libero.libero"]._assets_path_cache = str(directory)  # type: ignore[attr-defined]


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
