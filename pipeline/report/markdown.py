"""Tables of the committed figures, in Markdown, between marks in the documents that quote them.

    python -m pipeline.report.markdown README.md docs/heads.md

A document says which table goes where:

    <!-- table: comparison docs/results/spatial_scripted-against-flow.json -->
    ...
    <!-- end -->
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, did_you_mean
from pipeline.files import write_atomic
from pipeline.report import comparison, encoders, results
from pipeline.report.table import Table

MARK = "<!-- table"
BLOCK = re.compile(rf"({MARK}: (\S+) (\S+) -->\n)(?:(?!{MARK}).)*?(<!-- end -->)", re.DOTALL)
TABLES: dict[str, Callable[[Mapping[str, Any]], Table]] = {
    "conditions": lambda figures: results.conditions(figures["evaluation"]),
    "tasks": lambda figures: results.tasks(figures["evaluation"]),
    "recipe": lambda figures: results.recipe(figures["recipe"]),
    "overfit": results.overfit,
    "expert": results.expert,
    "matching": encoders.matching,
    "probes": encoders.probes,
    "instructions": encoders.instructions,
    "comparison": comparison.comparison,
    "steps": comparison.steps,
    "compared_conditions": comparison.conditions_changed,
    "held_out": comparison.new_tasks,
}


def main(argv: list[str] | None = None) -> None:
    """Make the tables of documents anew."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report.markdown",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("documents", metavar="FILE", type=Path, nargs="+", help="Markdown, changed in place")
    for document in parser.parse_args(argv).documents:
        write_atomic(document, fill(document.read_text(), Path()))


def fill(text: str, root: Path) -> str:
    """Return a document with each of its marked tables made anew from the file that the mark names, below `root`.

    Raises:
        DataError: a mark without its end, no such table or file, or the file lacks what the table shows.
    """
    marks, ends, whole = text.count(MARK), text.count("<!-- end -->"), len(BLOCK.findall(text))
    if not marks == ends == whole:
        raise DataError(
            f"{marks} marks of tables and {ends} ends, of which {whole} make a pair. A table stands between the lines "
            "<!-- table: KIND FILE --> and <!-- end -->"
        )

    def filled(match: re.Match) -> str:
        start, kind, name, end = match.groups()
        if kind not in TABLES:
            raise DataError(f"no table {kind!r}.{did_you_mean(kind, TABLES)}")
        try:
            rows = TABLES[kind](json.loads((root / name).read_text())).markdown()
        except OSError as error:
            raise DataError(f"the table {kind} of {name}: {error.strerror}") from None
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{name} lacks what the table {kind} shows ({type(error).__name__}: {error}). Make it anew with "
                "python -m stages.record, or python -m stages.compare ... --record"
            ) from error
        return f"{start}{rows}{end}"

    return BLOCK.sub(filled, text)


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
