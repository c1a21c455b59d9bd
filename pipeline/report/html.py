"""HTML elements. Text is escaped, always; what is markup already says so by its type."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


Number = int | float
Content = str | Markup | Iterable["Content"]
VOID = {"img", "meta"}
EMPTY_SVG = {"line", "path", "rect", "circle", "polyline"}


def el(tag: str, *content: Content, **attributes: str | Number | bool | None) -> Markup:
    """Return an element. `class_` is class and underscores become hyphens; None and False leave an attribute out."""
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(str(value))}"')
    if tag in EMPTY_SVG:  # SVG elements must be closed, or what follows them is their child and is not drawn
        return Markup(f"<{' '.join(parts)}/>")
    start = f"<{' '.join(parts)}>"
    return Markup(start if tag in VOID else f"{start}{join(content)}</{tag}>")


def join(content: Content) -> Markup:
    """Return content as one piece of markup."""
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(escape(content))
    return Markup("".join(join(part) for part in content))


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Content]], numbers: Sequence[int] = ()) -> Markup:
    """Return a table whose first column heads its rows, in a box that scrolls sideways where it must.

    Args:
        numbers: columns to align to the right.
    """

    def cell(tag: str, i: int, content: Content, scope: str | None) -> Markup:
        return el(tag, content, scope=scope, class_="number" if i in numbers else None)

    body = [
        el("tr", [cell("th" if i == 0 else "td", i, c, "row" if i == 0 else None) for i, c in enumerate(row)])
        for row in rows
    ]
    made = el(
        "table",
        el("caption", caption),
        el("thead", el("tr", [cell("th", i, name, "col") for i, name in enumerate(head)])),
        el("tbody", body),
    )
    return el("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def video(clip: bytes, poster: bytes, label: str) -> Markup:
    """Return a player of an mp4 file.

    Args:
        poster: PNG file shown before it plays.
        label: what a screen reader says of it.
    """
    return el(
        "video",
        src=data_uri(clip, "video/mp4"),
        poster=data_uri(poster, "image/png"),
        controls=True,
        muted=True,
        playsinline=True,
        loop=True,
        preload="none",
        aria_label=label,
    )


def document(title: str, header: Content, main: Content) -> str:
    """Return a whole page that needs nothing else."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", Markup((Path(__file__).parent / "style.css").read_text())),
    )
    body = el("body", el("header", header), el("main", main))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def data_uri(content: bytes, kind: str) -> str:
    """Return a data: URI of the MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
