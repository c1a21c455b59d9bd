"""Charts as inline SVG: sharp on any screen, coloured by the page's style sheet, readable by a screen reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from pipeline.report.html import Markup, Number, el

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        style: class of the style sheet: "a", "b" or "c".
        markers: points instead of a line.
    """

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    style: str
    markers: bool = False


def line_chart(title: str, x_label: str, series: Sequence[Series]) -> Markup:
    """Return a figure of `series` against x, y on a logarithmic scale. Values of zero or less are left out."""
    points = {s.name: [(x, y) for x, y in zip(s.x, s.y, strict=True) if y > 0] for s in series}
    shown = [s for s in series if points[s.name]]
    if not shown:
        return el("p", f"{title}: nothing was recorded.")
    every = [p for s in shown for p in points[s.name]]
    x_max = max(x for x, _ in every) or 1
    low, high = floor(log10(min(y for _, y in every))), ceil(log10(max(y for _, y in every)))
    high = max(high, low + 1)

    def place(x: Number, y: Number) -> tuple[float, float]:
        across = LEFT + x / x_max * (WIDTH - LEFT - RIGHT)
        down = TOP + (high - log10(y)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    grid = [_y_tick(10.0**k, place(0, 10.0**k)[1]) for k in range(low, high + 1)]
    grid += [_x_tick(x, place(x, 10.0**low)[0]) for x in ticks(x_max)]
    lines = [_line(s, [place(*p) for p in points[s.name]]) for s in shown]
    last = "; ".join(f"{s.name} {points[s.name][-1][1]:.3g} at {points[s.name][-1][0]:g}" for s in shown)
    svg = el(
        "svg",
        el("title", f"{title} against {x_label}, logarithmic scale. Last values: {last}"),
        grid,
        el("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, class_="axis", text_anchor="middle"),
        lines,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )
    legend = [el("li", el("span", class_=f"key {s.style}", aria_hidden="true"), s.name) for s in shown]
    return el("figure", el("figcaption", title), svg, el("ul", legend, class_="legend"))


def ticks(top: Number, about: int = 5) -> list[float]:
    """Return round numbers from 0 to at most `top`, some `about` of them."""
    raw = top / about
    scale = 10.0 ** floor(log10(raw))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw * 0.999)
    return [i * step for i in range(int(top / step + 1e-9) + 1)]


def interval_bar(rate: Number | None, low: Number | None, high: Number | None) -> Markup:
    """Return a bar from 0 to 100 % with its interval as a whisker; the numbers stand beside it in text."""
    parts = [el("rect", x=0, y=5, width=200, height=10, class_="track")]
    if rate is not None and low is not None and high is not None:
        a, b = round(200 * low, 1), round(200 * high, 1)
        parts += [
            el("rect", x=0, y=5, width=round(200 * rate, 1), height=10, class_="bar"),
            el("path", d=f"M{a} 10H{b}M{a} 4V16M{b} 4V16", class_="whisker"),
        ]
    return el("svg", parts, viewBox="-2 0 204 20", class_="interval", aria_hidden="true")


def shares_bar(shares: Sequence[tuple[str, Number]]) -> Markup:
    """Return a bar divided by (name, amount), with a legend that has the percentages."""
    total = sum(amount for _, amount in shares) or 1
    x, parts, legend = 0.0, [], []
    for i, (name, amount) in enumerate(shares):
        width = 400 * amount / total
        parts.append(el("rect", x=round(x, 2), y=0, width=round(width, 2), height=18, class_=f"share s{i}"))
        legend.append(el("li", el("span", class_=f"key s{i}", aria_hidden="true"), f"{name} {amount / total:.0%}"))
        x += width
    svg = el("svg", parts, viewBox="0 0 400 18", preserveAspectRatio="none", class_="shares", aria_hidden="true")
    return el("div", svg, el("ul", legend, class_="legend"))


def _line(series: Series, places: list[tuple[Number, Number]]) -> Markup:
    if series.markers or len(places) == 1:
        return Markup("".join(el("circle", cx=x, cy=y, r=4, class_=f"mark {series.style}") for x, y in places))
    return el("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=f"curve {series.style}")


def _y_tick(value: Number, y: Number) -> Markup:
    name = f"{value:g}" if 1e-3 <= value <= 1e3 else f"1e{round(log10(value))}"
    return Markup(
        el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        + el("text", name, x=LEFT - 6, y=y + 4, class_="axis", text_anchor="end")
    )


def _x_tick(value: Number, x: Number) -> Markup:
    return el("text", f"{value:g}", x=x, y=HEIGHT - BOTTOM + 17, class_="axis", text_anchor="middle")
