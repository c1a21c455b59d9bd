"""What an encoder sees alike: nearest frames by picture and by sentence, and patch tokens of an episode in colours."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from cache.reader import Store
from pipeline.errors import DataError
from pipeline.libero.demos.read import Demo, read
from pipeline.report.html import Content, Markup, data_uri, document, el
from pipeline.rollout.video import png

QUERIES, NEAREST = 5, 6
SHOWN_STEPS = 12  # of the episode whose patch tokens are shown
LEFT_OUT = -2.0  # less than any likeness
CONTRAST = (1, 99)  # percentiles of a component that are the ends of its colour


class Frames:
    """Frames of the demonstrations that a store was made of, by the store's rows.

    Raises:
        DataError: the demonstrations are others.
    """

    def __init__(self, store: Store, demos: Sequence[Demo]) -> None:
        self._episodes = store.episodes
        self._of = {demo.source: demo for demo in demos}
        if missing := [source for source in self._episodes.source if source not in self._of]:
            raise DataError(f"{store.location}: was made of {missing[0]}, which is not among the demonstrations given")
        self.episode = np.repeat(np.arange(len(self._episodes)), self._episodes.length)

    def picture(self, row: int, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """Return the frame of a row."""
        step = self.step(row)
        return read(self._demo(row), [camera], step, step + 1)["images"][camera][0]

    def step(self, row: int) -> int:
        """Return the step of a row in its episode."""
        return int(row - self._episodes.start[self.episode[row]])

    def words(self, row: int) -> str:
        """Return which frame it is."""
        return f"task {self._demo(row).task.id}, {self._demo(row).name}, step {self.step(row)}"

    def rows(self, episode: int) -> range:
        """Return the rows of an episode."""
        start = int(self._episodes.start[episode])
        return range(start, start + int(self._episodes.length[episode]))

    def _demo(self, row: int) -> Demo:
        return self._of[self._episodes.source[self.episode[row]]]


def features_page(
    store: Store, demos: Sequence[Demo], sentences: Mapping[str, Float[np.ndarray, " D"]], camera: str
) -> str:
    """Return the page.

    Args:
        store: the features.
        demos: that it was made of.
        sentences: with their features, to look for beside the store's own instructions.
        camera: whose pictures to show.

    Raises:
        DataError: the demonstrations are others than the store's.
    """
    frames = Frames(store, demos)
    pooled = _unit(store.read(f"image/{camera}", 0, store.rows)[:, 0])
    own = dict(zip(store.texts.instructions, store.texts.embedding, strict=True))
    encoder = store.identity["encoder"]
    words = f"{encoder['model']} ({encoder['pretrained']}), {store.rows} frames of {camera}"
    parts: list[tuple[str, Content]] = [
        ("Nearest frames by picture", _by_picture(frames, pooled, camera)),
        ("Nearest frames by sentence", _by_sentence(frames, pooled, {**own, **sentences}, camera)),
    ]
    if f"grid/{camera}" in store.fields:
        parts.append(("Patch tokens of an episode", _tokens(frames, store, camera)))
    return document("Features", words, parts)


def _unit(x: np.ndarray) -> np.ndarray:
    """Return features without what all have in common, at length 1."""
    x = x.astype(np.float32)
    x = x - x.mean(0)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def _by_picture(frames: Frames, pooled: np.ndarray, camera: str) -> Markup:
    queries = np.linspace(0, len(pooled) - 1, QUERIES + 2).astype(int)[1:-1]
    lines = []
    for row in map(int, queries):
        likeness = pooled @ pooled[row]
        likeness[frames.episode == frames.episode[row]] = LEFT_OUT
        lines.append(
            el("div", el("h3", frames.words(row)), _strip(frames, camera, [row, *_best(likeness, frames)], likeness))
        )
    note = "The first frame, and those most like it in other episodes, one of each."
    return el("div", el("p", note, class_="note"), lines)


def _by_sentence(frames: Frames, pooled: np.ndarray, sentences: Mapping[str, np.ndarray], camera: str) -> Markup:
    lines = []
    # A picture's likeness to a sentence is told from its likeness to the others: some pictures are like any sentence.
    likenesses = pooled @ _unit(np.stack(list(sentences.values()))).T
    for text, likeness in zip(sentences, likenesses.T, strict=True):
        lines.append(el("div", el("h3", text), _strip(frames, camera, _best(likeness, frames), likeness)))
    return el("div", el("p", "Frames most like a sentence, one of each episode.", class_="note"), lines)


def _best(likeness: np.ndarray, frames: Frames) -> list[int]:
    """Return the rows most alike, one of each episode."""
    found: dict[int, int] = {}
    for row in np.argsort(-likeness, kind="stable"):
        found.setdefault(int(frames.episode[row]), int(row))
        if len(found) == NEAREST:
            break
    return list(found.values())


def _strip(frames: Frames, camera: str, rows: Sequence[int], likeness: np.ndarray) -> Markup:
    def caption(row: int) -> str:
        return f"{likeness[row]:.2f}" if likeness[row] > LEFT_OUT else ""

    pictures = [_picture(frames.picture(row, camera), frames.words(row), caption(row)) for row in rows]
    return el("div", pictures, class_="strip")


def _picture(image: np.ndarray, words: str, caption: str) -> Markup:
    return el("figure", el("img", src=data_uri(png(image), "image/png"), alt=words), el("figcaption", caption))


def _tokens(frames: Frames, store: Store, camera: str) -> Markup:
    """Show the three main components of an episode's patch tokens as red, green and blue, below its pictures."""
    rows = frames.rows(len(store.episodes) // 2)
    tokens = store.read(f"grid/{camera}", rows.start, rows.stop)[:, 0].astype(np.float32)
    side = round(tokens.shape[1] ** 0.5)
    flat = tokens.reshape(-1, tokens.shape[-1])
    flat = flat - flat.mean(0)
    _, _, axes = np.linalg.svd(flat[:: max(1, len(flat) // 4000)], full_matrices=False)
    colours = flat @ axes[:3].T
    low, high = np.percentile(colours, CONTRAST, axis=0)
    shades = (255 * np.clip((colours - low) / (high - low), 0, 1)).astype(np.uint8).reshape(len(tokens), side, side, 3)
    shown = np.linspace(0, len(rows) - 1, SHOWN_STEPS).astype(int)
    figures = []
    for at in shown:
        image = frames.picture(rows[at], camera)
        scale = -(-image.shape[0] // side)
        large = shades[at].repeat(scale, 0).repeat(scale, 1)[: image.shape[0], : image.shape[1]]
        figures.append(_picture(np.concatenate([image, large]), frames.words(rows[at]), f"step {at}"))
    note = (
        f"{frames.words(rows[0]).rpartition(',')[0]}, and below each frame its tokens: colours are the three main "
        f"components of {side} x {side} of them."
    )
    return el("div", el("p", note, class_="note"), el("div", figures, class_="strip"))
