"""The project's import graph, read from the source."""

import ast
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("cache", "pipeline", "stages")


def module_file(name: str) -> Path | None:
    """Return the file of a module of this project, relative to the root; None for anything else."""
    base = Path(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


def imported(path: Path) -> set[str]:
    """Return the names of this project's modules that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if module_file(inner) else node.module)
    return {name for name in found if name.split(".")[0] in PACKAGES and module_file(name)}


def closure(path: Path, leave_out: Callable[[Path], bool] = lambda path: False) -> set[Path]:
    """Return every file of this project that `path` reaches by imports, itself included, not through `leave_out`."""
    todo, seen = [path], set()
    while todo:
        current = todo.pop()
        if current in seen or leave_out(current):
            continue
        seen.add(current)
        todo += [file for name in imported(current) if (file := module_file(name)) is not None]
    return seen
