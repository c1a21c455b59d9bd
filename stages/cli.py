"""What every stage's command line shares: logging, and errors shown as text instead of a traceback."""

import argparse
import logging
import sys
from collections.abc import Callable

from cache.errors import StoreError
from pipeline.errors import PipelineError

log = logging.getLogger(__name__)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that describes itself with the stage's docstring and knows --params."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--params", default="params.yaml", help="settings file (default: %(default)s)")
    return made


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
        "PIL",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(main: Callable[[], None]) -> None:
    """Call `main`; show an error that a person can act on as one message and exit with status 1."""
    setup_logging()
    try:
        main()
    except (PipelineError, StoreError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None:  # not of a file: a person can do nothing about it
            raise
        log.debug("", exc_info=True)
        sys.exit(f"error: {error.filename}: {error.strerror}. Put that right and start the same command again")
    except KeyboardInterrupt:
        sys.exit("interrupted; start the same command again to go on from here")
