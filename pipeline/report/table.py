"""A table, written once: shown as HTML on a page, as Markdown in a document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.charts import interval_bar
from pipeline.report.html import Content, Markup, Number, el

NONE = "–"


class Code(str):
    """A cell that is a name in the code, or a command."""

    __slots__ = ()


@dataclass(frozen=True)
class Rate:
    """A cell: a success rate with its n and its 95 % interval, never alone.

    Attributes:
        row: has success_rate, successes, n, wilson_low and wilson_high.
        note: what follows.
    """

    row: Mapping[str, Any]
    note: str = ""

    @property
    def details(self) -> str:
        """What stands beside the rate."""
        return f"{self.row['successes']} of {self.row['n']}, {interval(self.row)}{self.note and f'; {self.note}'}"


Cell = str | Rate


@dataclass(frozen=True)
class Table:
    """Rows of cells below a head, in lower case; the first column heads its rows. `numbers` are aligned right."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Sequence[int] = ()

    def html(self) -> Content:
        """Return it in a box that scrolls sideways where it must; nothing without a row."""
        if not self.rows:
            return ()

        def cell(tag: str, i: int, content: Content, scope: str | None) -> Markup:
            return el(tag, content, scope=scope, class_="number" if i in self.numbers else None)

        head = [cell("th", i, name[:1].upper() + name[1:], "col") for i, name in enumerate(self.head)]
        body = [
            el("tr", [cell("td" if i else "th", i, _html(c), None if i else "row") for i, c in enumerate(row)])
            for row in self.rows
        ]
        made = el("table", el("caption", self.caption), el("thead", el("tr", head)), el("tbody", body))
        return el("div", made, class_="scroll", tabindex="0", role="region", aria_label=self.caption)

    def markdown(self) -> str:
        """Return its lines. Raises LookupError without a row: whoever asked for it meant other figures."""
        if not self.rows:
            raise LookupError(f"no row: {self.caption}")
        lines = [list(self.head), ["---"] * len(self.head), *([_markdown(c) for c in row] for row in self.rows)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _html(cell: Cell) -> Content:
    if isinstance(cell, Rate):
        low, high = cell.row["wilson_low"], cell.row["wilson_high"]
        bar = interval_bar(cell.row["success_rate"], low, high)
        return [el("strong", percent(cell.row["success_rate"])), bar, el("span", cell.details, class_="id")]
    return el("code", str(cell)) if isinstance(cell, Code) else cell


def _markdown(cell: Cell) -> str:
    if isinstance(cell, Rate):
        cell = f"{percent(cell.row['success_rate'])}: {cell.details}"
    text = cell.replace("|", "\\|")
    return f"`{text}`" if isinstance(cell, Code) else text


def percent(rate: Number | None) -> str:
    """Return 95 % or 95.5 %; a dash for no rate."""
    return NONE if rate is None else f"{100 * rate:.1f}".removesuffix(".0") + " %"


def interval(row: Mapping[str, Any]) -> str:
    """Return the interval of a row of results in percent."""
    low, high = row["wilson_low"], row["wilson_high"]
    return NONE if low is None else f"{100 * low:.1f} – {100 * high:.1f} %"


def number(value: Number | None, form: str) -> str:
    """Return a number in the format `form`; a dash for none."""
    return NONE if value is None else form.format(value)


def duration(seconds: Number | None) -> str:
    """Return 8.2 s, 3 min 05 s or 1 h 05 min; a dash for none."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
