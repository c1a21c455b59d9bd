"""Run one of the commands: vla-flow COMMAND [its arguments], or python -m stages COMMAND; COMMAND --help tells more."""

import argparse
import ast
import importlib
import sys
from functools import partial
from pathlib import Path

from pipeline import __version__
from pipeline.errors import did_you_mean
from stages import cli

# As they are needed; others come after.
ORDER = ("doctor", "demos", "embed", "train_flow", "export_onnx", "eval_libero", "report")


def main(argv: list[str] | None = None) -> None:
    """Hand the arguments to the command that the first of them names."""
    known = commands()
    lines = "\n".join(f"  {name:14}{about}" for name, about in known.items())
    parser = argparse.ArgumentParser(
        prog="vla-flow",
        description=__doc__,
        epilog=f"commands:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vla-flow {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    given = sys.argv[1:] if argv is None else argv
    name = parser.parse_args(given[:1]).command.replace("-", "_")
    if name not in known:
        parser.error(f"no command {name!r}.{did_you_mean(name, known)}")
    cli.run(partial(importlib.import_module(f"stages.{name}").main, given[1:]))


def commands() -> dict[str, str]:
    """Return each command and the first line of its docstring, read without importing it: that takes seconds."""
    found = {}
    for path in Path(__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if main and path.stem != "__main__":
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return {name: found[name] for name in sorted(found, key=lambda name: (*ORDER, name).index(name))}


if __name__ == "__main__":
    main()
