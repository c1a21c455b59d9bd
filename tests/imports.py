"""The project's import graph, read from the source."""

import ast
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
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] in PACKAGES and module_file(name)}


def closure(path: Path) -> set[Path]:
    """Return every file of this project that importing `path` can reach, itself and package __init__ files included."""
    todo, seen = [path], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        for name in imported(current):
            parts = name.split(".")
            for k in range(1, len(parts) + 1):
                file = module_file(".".join(parts[:k]))
                if file is not None:
                    todo.append(file)
    return seen
