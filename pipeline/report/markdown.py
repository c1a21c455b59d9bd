"""Tables of the committed figures, in Markdown, between marks in the documents that quote them.

A document says which table goes where:

    <!-- table: comparison docs/results/spatial_scripted-against-flow.json -->
    ...
    <!-- end -->
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, did_you_mean
from pipeline.report.comparison import (
    STRAIGHTNESS,
    by_condition,
    by_steps,
    lost_and_gained,
    steps_head,
    straightness,
    task_names,
)
from pipeline.report.sections import condition_name, duration, interval, percent

MARK = "<!-- table"
BLOCK = re.compile(rf"({MARK}: (\S+) (\S+) -->\n)(?:(?!{MARK}).)*?(<!-- end -->)", re.DOTALL)
Tree = Mapping[str, Any]


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
            rows = TABLES[kind](json.loads((root / name).read_text()))
        except OSError as error:
            raise DataError(f"the table {kind} of {name}: {error.strerror}") from None
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{name} lacks what the table {kind} shows ({type(error).__name__}: {error}). Make it anew with "
                "python -m stages.report --record, or --compare ... --record"
            ) from error
        return f"{start}{rows}{end}"

    return BLOCK.sub(filled, text)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (head, *rows)]
    escaped.insert(1, ["---"] * len(head))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def solved(row: Tree) -> str:
    """Return a rate with its n and interval."""
    return f"{percent(row['success_rate'])}: {row['successes']} of {row['n']}, {interval(row)}"


def conditions(figures: Tree) -> str:
    """The plain evaluation of an experiment, and those with something changed."""
    result = figures["evaluation"]
    rows = [("as it is", solved(result), "–")]
    for row in result["conditions"]:
        against = row.get("against", "plain")
        against = "as it is" if against == "plain" else condition_name(against, None)
        name = condition_name(row["condition"], row["amount"])
        rows.append((name, solved(row), f"{_pairs(row)}, to {against}"))
    return grid(("evaluation", "success, 95 %", "lost, gained, McNemar's p"), rows)


def tasks(figures: Tree) -> str:
    """Success task by task."""
    rows = [
        (f"{r['suite']} {r['task']}", r["language"], solved(r), _steps(r["mean_steps_to_success"]))
        for r in figures["evaluation"]["per_task"]
    ]
    return grid(("task", "instruction", "success, 95 %", "mean steps to success"), rows)


def comparison(compared: Tree) -> str:
    """Policies side by side, paired by init state."""
    first = compared["rows"][0]["name"]
    rows = []
    for row in compared["rows"]:
        rows.append(
            (
                f"`{row['name']}`",
                str(row["head"]),
                solved(row),
                _pairs(row["against_first"]),
                _number(row["val_action_mse"], "{:.4f}"),
                "–" if row["training_s"] is None else duration(row["training_s"]),
                _number(row["parameters"] and row["parameters"] / 1e6, "{:.1f} M"),
                _number(row["policy_ms"], "{:.0f} ms"),
            )
        )
    head = ("policy", "head", "success, 95 %", f"to {first}", "validation MSE", "training", "weights", "a look")
    return grid(head, rows)


def steps(compared: Tree) -> str:
    """Success of each policy that was sampled in several numbers of steps."""
    columns, several = by_steps(compared["rows"])
    rows = []
    for name, by in several.items():
        rates = (solved(by[n]) if n in by else "–" for n in columns)
        rows.append((f"`{name}`", straightness(by), *rates))
    return grid(("policy", STRAIGHTNESS, *steps_head(columns)), rows)


def compared_conditions(compared: Tree) -> str:
    """Success of each policy with something changed, against the first one's with the same."""
    columns, found = by_condition(compared["rows"])
    if not found:
        raise LookupError("no policy with conditions")

    def cell(row: Tree | None) -> str:
        if row is None:
            return "–"
        return solved(row) + (f"; {_pairs(row['against_first'])}" if row["against_first"] else "")

    rows = [(f"`{name}`", *(cell(by.get(column)) for column in columns)) for name, by in found.items()]
    return grid(("policy", *columns), rows)


def held_out(compared: Tree) -> str:
    """Success on tasks that a policy did not learn from."""
    first = compared["rows"][0]["name"]
    new = [(row["name"], row["held_out"]) for row in compared["rows"] if row.get("held_out")]
    if not new:
        raise LookupError("no policy with tasks held out")
    rows = [
        (f"`{name}`", task_names(found["tasks"]), solved(found), _pairs(found["against_first"])) for name, found in new
    ]
    return grid(("policy", "tasks held out", "success on them, 95 %", f"to {first}"), rows)


def expert(figures: Tree) -> str:
    """The scripted expert, task by task."""
    rows = [
        (str(r["task"]), r["language"], f"{r['successes']}/{r['n']}", _steps(r["mean_steps"]))
        for r in figures["per_task"]
    ]
    return grid(("task", "instruction", "solved", "mean steps"), rows)


def _pairs(row: Tree | None) -> str:
    return f"{lost_and_gained(row)}, p = {row['p_value']:.2g}" if row else "–"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _steps(value: float | None) -> str:
    return _number(value, "{:.1f}")


TABLES: dict[str, Callable[[Tree], str]] = {
    "conditions": conditions,
    "tasks": tasks,
    "comparison": comparison,
    "steps": steps,
    "compared_conditions": compared_conditions,
    "held_out": held_out,
    "expert": expert,
}
