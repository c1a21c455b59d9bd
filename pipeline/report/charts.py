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

    def place(x: Number, y: Number) -> tuple[Number, Number]:
        return _across(x / x_max), _down((log10(y) - low) / (high - low))

    grid = [_y_tick(10.0**k, place(0, 10.0**k)[1]) for k in range(low, high + 1)]
    grid += [_x_tick(x, place(x, 10.0**low)[0]) for x in ticks(x_max)]
    lines = [_line(s, [place(*p) for p in points[s.name]]) for s in shown]
    last = "; ".join(f"{s.name} {points[s.name][-1][1]:.3g} at {points[s.name][-1][0]:g}" for s in shown)
    words = f"{title} against {x_label}, logarithmic scale. Last values: {last}"
    return _figure(title, words, x_label, [*grid, *lines], shown)


def trace_chart(title: str, x_label: str, series: Sequence[Series], low: Number, high: Number) -> Markup:
    """Return a figure of `series` against x from 0, y from `low` to `high`."""
    x_max = max(max(s.x) for s in series) or 1

    def place(x: Number, y: Number) -> tuple[Number, Number]:
        return _across(x / x_max), _down((y - low) / (high - low))

    grid = [_y_tick(y, place(0, y)[1]) for y in (low, (low + high) / 2, high)]
    grid += [_x_tick(x, place(x, low)[0]) for x in ticks(x_max)]
    lines = [_line(s, [place(*p) for p in zip(s.x, s.y, strict=True)]) for s in series]
    ranges = "; ".join(f"{s.name} {min(s.y):.2g} to {max(s.y):.2g}" for s in series)
    return _figure(title, f"{title} against {x_label}. Ranges: {ranges}", x_label, [*grid, *lines], series)


def histogram(title: str, x_label: str, counts: Sequence[int], low: Number, high: Number) -> Markup:
    """Return a figure of bars: how many values lie in each of equal bins from `low` to `high`."""
    top = max(max(counts), 1)
    width = (WIDTH - LEFT - RIGHT) / len(counts)
    bars = [
        el(
            "rect",
            x=round(LEFT + i * width + 0.5, 1),
            y=_down(n / top),
            width=round(width - 1, 1),
            height=round(_down(0) - _down(n / top), 1),
            class_="bar",
        )
        for i, n in enumerate(counts)
        if n
    ]
    grid = [_y_tick(n, _down(n / top)) for n in sorted({0, top})]
    grid += [_x_tick(low + share * (high - low), _across(share)) for share in (0, 0.5, 1)]
    fullest = max(range(len(counts)), key=lambda i: counts[i])
    edges = [low + (fullest + i) * (high - low) / len(counts) for i in (0, 1)]
    words = (
        f"{title}: {sum(counts)} values from {low:g} to {high:g}; most, {top}, from {edges[0]:.3g} to {edges[1]:.3g}"
    )
    return _figure(title, words, x_label, [*grid, *bars], ())


def _across(share: Number) -> Number:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _down(share: Number) -> Number:
    return round(TOP + (1 - share) * (HEIGHT - TOP - BOTTOM), 1)


def _figure(title: str, words: str, x_label: str, drawing: Sequence[Markup], series: Sequence[Series]) -> Markup:
    """Put a chart together. `words` are what a screen reader says of it."""
    svg = el(
        "svg",
        el("title", words),
        drawing,
        el("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, class_="axis", text_anchor="middle"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )
    legend = [el("li", el("span", class_=f"key {s.style}", aria_hidden="true"), s.name) for s in series]
    return el("figure", el("figcaption", title), svg, el("ul", legend, class_="legend") if legend else "")


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
    name = f"{value:g}" if value <= 0 or 1e-3 <= value < 1e5 else f"1e{round(log10(value))}"
    return Markup(
        el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        + el("text", name, x=LEFT - 6, y=y + 4, class_="axis", text_anchor="end")
    )


def _x_tick(value: Number, x: Number) -> Markup:
    return el("text", f"{value:g}", x=x, y=HEIGHT - BOTTOM + 17, class_="axis", text_anchor="middle")
