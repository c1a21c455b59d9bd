"""What every stage's command line shares: logging, and errors shown as text instead of a traceback."""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pipeline import __version__
from pipeline.config import Params, load
from pipeline.config.text import parse
from pipeline.errors import ConfigError, PipelineError

log = logging.getLogger(__name__)


def parser(doc: str | None, params: bool = True) -> argparse.ArgumentParser:
    """Return a parser that describes itself with the stage's docstring, and, with `params`, knows --params and --set.

    The name in its usage is that of the first command in the docstring.
    """
    command = re.search(r"^\s*(?:python|accelerate launch) .*?-m (\S+)", doc or "", re.MULTILINE)
    made = argparse.ArgumentParser(
        prog=f"python -m {command[1]}" if command else None,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"vla-flow {__version__}")
    if not params:
        return made
    made.add_argument("--params", default="params.yaml", help="settings file (default: %(default)s)")
    made.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting to use instead of the file's, such as train_flow.seed=1; may be given several times",
    )
    return made


def settings(args: argparse.Namespace) -> Params:
    """Return the settings that the command line asks for. Raises ConfigError as `load`."""
    return load(args.params, changes(args.set), getattr(args, "variant", None))


def changes(given: Sequence[str]) -> dict[str, Any]:
    """Return what `--set` asks for, by name. Raises ConfigError for what is no KEY=VALUE."""
    return dict(_change(text) for text in given)


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: not KEY=VALUE, such as train_flow.seed=1")
    return name, parse(value, f"--set {text}")


def setup_logging() -> None:
    """Log to stderr, one line per record, without the chatter of the libraries underneath."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    for name in (
        "accelerate",
        "distributed",
        "distributed.scheduler",
        "distributed.nanny",
        "robosuite_logs",
        "numba",
        "httpx",
        "matplotlib",
        "onnx_ir",
        "onnxscript",
        "PIL",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(main: Callable[[], None]) -> None:
    """Call `main`; show an error that a person can act on as one message and exit with status 1."""
    setup_logging()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; start the same command again to go on from here")
    except Exception as error:
        log.debug("", exc_info=True)
        if (text := _told(error)) is None:
            raise
        sys.exit(f"error: {text}")


def _told(error: Exception) -> str | None:
    """Return what a person is told of an error; None for one that a person can do nothing about."""
    from cache.errors import StoreError  # brings zarr: not at the top, for --help and a typo answer at once

    if isinstance(error, PipelineError | StoreError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Put that right and start the same command again"
    return None
