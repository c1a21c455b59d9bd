"""Charts as inline SVG: sharp on any screen, coloured by the page's style sheet, readable by a screen reader.

A pointer over a chart is told the values there, without a script: by the titles of invisible columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10

import numpy as np

from pipeline.report.html import Markup, Number, el

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
COLUMNS = 60  # of a chart, at most, that tell their values


@dataclass(frozen=True)
class Series:
    """A line of a chart. `style` is a class of the style sheet: "a", "b" or "d"."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    style: str


@dataclass(frozen=True)
class Axis:
    """Where values stand between 0 and 1, and the values and names of the ticks."""

    share: Callable[[Number], Number]
    ticks: Sequence[tuple[Number, str]]


def linear(low: Number, high: Number) -> Axis:
    """Return an axis of round ticks that holds `low` to `high`; a wider one where these are the same."""
    if low == high:
        low, high = low - 1, high + 1
    step = round_step((high - low) / 5)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    bottom, span = first * step, (last - first) * step
    # A tick's name has the digits of the step, no rounding error of the product.
    ticks = [(k * step, f"{round(k * step, 12):g}") for k in range(first, last + 1)]
    return Axis(lambda y: (y - bottom) / span, ticks)


def logarithmic(low: Number, high: Number) -> Axis:
    """Return an axis of powers of ten that holds `low` to `high`, both positive."""
    first = floor(log10(low))
    last = max(ceil(log10(high)), first + 1)
    ticks = [(10.0**k, f"{10.0**k:g}" if -4 < k < 5 else f"1e{k}") for k in range(first, last + 1)]
    return Axis(lambda y: (log10(y) - first) / (last - first), ticks)


def line_chart(
    title: str, x_label: str, series: Sequence[Series], limits: tuple[Number, Number] | None = None
) -> Markup:
    """Return a figure of `series` against x from 0.

    Args:
        limits: what y must hold; None is a logarithmic scale, which leaves out values of zero or less.
    """
    points = {s.name: [(x, y) for x, y in zip(s.x, s.y, strict=True) if limits or y > 0] for s in series}
    shown = [s for s in series if points[s.name]]
    if not shown:
        return el("p", f"{title}: nothing was recorded.")
    ys = [y for s in shown for _, y in points[s.name]]
    axis = linear(min(*ys, *limits), max(*ys, *limits)) if limits else logarithmic(min(ys), max(ys))
    across, x_max = by_x(points), max(x for s in shown for x, _ in points[s.name]) or 1

    def place(x: Number, y: Number) -> tuple[Number, Number]:
        return _across(x / x_max), _down(axis.share(y))

    grid = [_y_tick(name, _down(axis.share(y))) for y, name in axis.ticks]
    grid += [_x_tick(x, _across(x / x_max)) for x in ticks(x_max)]
    lines = [_line(s.style, [place(*p) for p in points[s.name]]) for s in shown]
    words = f"{title} against {x_label}{'' if limits else ', logarithmic scale'}. Last values: "
    words += "; ".join(f"{s.name} {points[s.name][-1][1]:.3g} at {points[s.name][-1][0]:g}" for s in shown)
    return _figure(title, words, x_label, [*grid, *lines, *_columns(x_label, across, x_max)], shown)


def by_x(points: dict[str, list[tuple[Number, Number]]]) -> list[tuple[Number, str]]:
    """Return the values of all series at each x, in words: at most COLUMNS of them, evenly spread."""
    values: dict[Number, list[str]] = {}
    for name, line in points.items():
        for x, y in line:
            values.setdefault(x, []).append(f"{name} {y:.3g}")
    every = sorted(values)
    kept = np.unique(np.linspace(0, len(every) - 1, min(len(every), COLUMNS)).round().astype(int))
    return [(every[i], ", ".join(values[every[i]])) for i in kept]


def _columns(x_label: str, across: Sequence[tuple[Number, str]], x_max: Number) -> list[Markup]:
    places = [_across(x / x_max) for x, _ in across]
    edges = pairwise([LEFT, *((a + b) / 2 for a, b in pairwise(places)), WIDTH - RIGHT])
    return [
        _box("column", f"{x_label} {x:g}: {text}", left, right, 1)
        for (x, text), (left, right) in zip(across, edges, strict=True)
    ]


def _box(kind: str, title: str, left: Number, right: Number, share: Number) -> Markup:
    """Return a rectangle over a share of the height, which tells `title` under a pointer."""
    top, width = _down(share), round(max(right - left, 1), 1)
    height = round(_down(0) - top, 1)
    return el("rect", el("title", title), x=round(left, 1), y=top, width=width, height=height, class_=kind)


def histogram(title: str, x_label: str, counts: Sequence[int], low: Number, high: Number) -> Markup:
    """Return a figure of bars: how many values lie in each of equal bins from `low` to `high`."""
    top, bins = max(*counts, 1), len(counts)
    width = (WIDTH - LEFT - RIGHT) / bins
    edges = [low + i * (high - low) / bins for i in range(bins + 1)]
    bars = [
        _box("bar", f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {n}", LEFT + i * width, LEFT + (i + 1) * width - 1, n / top)
        for i, n in enumerate(counts)
        if n
    ]
    grid = [_y_tick(str(n), _down(n / top)) for n in (0, top)]
    grid += [_x_tick(low + share * (high - low), _across(share)) for share in (0, 0.5, 1)]
    fullest = counts.index(max(counts))
    words = f"{title}: {sum(counts)} values from {low:g} to {high:g}; "
    words += f"most, {top}, from {edges[fullest]:.3g} to {edges[fullest + 1]:.3g}"
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
    legend = [el("li", el("span", class_=f"key {style}", aria_hidden="true"), name) for style, name in keys(series)]
    return el("figure", el("figcaption", title), svg, el("ul", legend, class_="legend") if legend else "")


def keys(series: Sequence[Series]) -> list[tuple[str, str]]:
    """Return each style once, with the name of its line, or the first and last name of several."""
    named: dict[str, list[str]] = {}
    for each in series:
        named.setdefault(each.style, []).append(each.name)
    return [(style, " to ".join(dict.fromkeys((names[0], names[-1])))) for style, names in named.items()]


def round_step(least: Number) -> float:
    """Return the smallest of 1, 2, 5, 10, ... times a power of ten that is at least `least`."""
    scale = 10.0 ** floor(log10(least))
    return next(m * scale for m in (1, 2, 5, 10) if m * scale >= least * 0.999)


def ticks(top: Number, about: int = 5) -> list[float]:
    """Return round numbers from 0 to at most `top`, some `about` of them."""
    step = round_step(top / about)
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


def _line(style: str, places: list[tuple[Number, Number]]) -> Markup:
    if len(places) == 1:
        return el("circle", cx=places[0][0], cy=places[0][1], r=4, class_=f"mark {style}")
    return el("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=f"curve {style}")


def _y_tick(name: str, y: Number) -> Markup:
    return Markup(
        el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        + el("text", name, x=LEFT - 6, y=y + 4, class_="axis", text_anchor="end")
    )


def _x_tick(value: Number, x: Number) -> Markup:
    return el("text", f"{value:g}", x=x, y=HEIGHT - BOTTOM + 17, class_="axis", text_anchor="middle")
