"""HTML elements. Text is escaped, always; what is markup already says so by its type."""

import base64
from collections.abc import Iterable
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
    if tag in EMPTY_SVG and not content:  # to be closed, or what follows is its child and is not drawn
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


def document(title: str, words: str, parts: Iterable[tuple[str, Content]]) -> str:
    """Return a whole page that needs nothing else: a section for each part (heading, content) that has content."""
    shown = [(heading, made) for heading, content in parts if (made := join(content))]
    sections = [
        el("section", el("h2", heading), made, id=f"part-{i}", aria_label=heading)
        for i, (heading, made) in enumerate(shown)
    ]
    links = [el("li", el("a", heading, href=f"#part-{i}")) for i, (heading, _) in enumerate(shown)]
    contents = el("nav", el("ul", links), aria_label="Contents") if len(links) > 2 else ""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", Markup((Path(__file__).parent / "style.css").read_text())),
    )
    body = el("body", el("header", el("h1", title), el("p", words), contents), el("main", sections))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def data_uri(content: bytes, kind: str) -> str:
    """Return a data: URI of the MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
