"""Tables of the committed figures, in Markdown, between marks in the documents that quote them.

A document says which table goes where:

    <!-- table: comparison docs/results/spatial_scripted-against-flow-0.json -->
    ...
    <!-- end -->
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, did_you_mean
from pipeline.report.comparison import by_steps
from pipeline.report.sections import condition_name, duration, interval, percent

BLOCK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
Tree = Mapping[str, Any]


def fill(text: str, root: Path) -> str:
    """Return a document with each of its marked tables made anew from the file that the mark names, below `root`.

    Raises:
        DataError: no such table or file, or the file lacks what the table shows.
    """

    def filled(match: re.Match) -> str:
        start, kind, name, end = match.groups()
        if kind not in TABLES:
            raise DataError(f"no table {kind!r}.{did_you_mean(kind, TABLES)}")
        try:
            rows = TABLES[kind](json.loads((root / name).read_text()))
        except OSError as error:
            raise DataError(f"the table {kind} of {name}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"the table {kind} of {name}: {type(error).__name__} {error}") from error
        return f"{start}{rows}{end}"

    return BLOCK.sub(filled, text)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def solved(row: Tree) -> str:
    """Return successes, n and interval."""
    return f"{row['successes']} of {row['n']}, {interval(row)}"


def conditions(figures: Tree) -> str:
    """The plain evaluation of an experiment, and those with something changed."""
    result = figures["evaluation"]
    rows = [("as it is", percent(result["success_rate"]), solved(result), "", "")]
    for row in result["conditions"]:
        against = row.get("against", "plain")
        against = "as it is" if against == "plain" else condition_name(against, None)
        rows.append(
            (
                condition_name(row["condition"], row["amount"]),
                percent(row["success_rate"]),
                solved(row),
                f"-{row['lost']} +{row['gained']} of {row['pairs']}, to {against}",
                f"{row['p_value']:.2g}",
            )
        )
    return grid(("evaluation", "success", "episodes, 95 %", "lost, gained", "McNemar's p"), rows)


def tasks(figures: Tree) -> str:
    """Success task by task."""
    rows = [
        (str(r["task"]), r["language"], percent(r["success_rate"]), solved(r), _steps(r["mean_steps_to_success"]))
        for r in figures["evaluation"]["per_task"]
    ]
    return grid(("task", "instruction", "success", "episodes, 95 %", "mean steps to success"), rows)


def comparison(compared: Tree) -> str:
    """Policies side by side, paired by init state."""
    first = compared["rows"][0]["name"]
    rows = []
    for row in compared["rows"]:
        pairs = row["against_first"]
        rows.append(
            (
                f"`{row['name']}`",
                str(row["head"]),
                percent(row["success_rate"]),
                solved(row),
                f"-{pairs['lost']} +{pairs['gained']}, p = {pairs['p_value']:.2g}" if pairs else "",
                _number(row["val_action_mse"], "{:.4f}"),
                "" if row["training_s"] is None else duration(row["training_s"]),
                _number(row["parameters"] and row["parameters"] / 1e6, "{:.1f} M"),
                _number(row["policy_ms"], "{:.0f} ms"),
            )
        )
    head = (
        "policy",
        "head",
        "success",
        "episodes, 95 %",
        f"to {first}",
        "held-out MSE",
        "training",
        "parameters",
        "a look",
    )
    return grid(head, rows)


def steps(compared: Tree) -> str:
    """Success of each policy that was sampled in several numbers of steps."""
    several = by_steps(compared["rows"])
    columns = sorted({n for by in several.values() for n in by})
    rows = [
        (f"`{name}`", *(f"{percent(by[n]['success_rate'])} ({solved(by[n])})" if n in by else "" for n in columns))
        for name, by in several.items()
    ]
    return grid(("policy", *(f"{n} step{'s' if n > 1 else ''}" for n in columns)), rows)


def expert(figures: Tree) -> str:
    """The scripted expert, task by task."""
    rows = [
        (str(r["task"]), r["language"], f"{r['successes']}/{r['n']}", _steps(r["mean_steps"]))
        for r in figures["per_task"]
    ]
    return grid(("task", "instruction", "solved", "mean steps"), rows)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _steps(value: float | None) -> str:
    return _number(value, "{:.1f}")


TABLES: dict[str, Callable[[Tree], str]] = {
    "conditions": conditions,
    "tasks": tasks,
    "comparison": comparison,
    "steps": steps,
    "expert": expert,
}
