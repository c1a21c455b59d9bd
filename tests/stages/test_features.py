"""The page of features: the frames it calls alike are those whose features are."""

import re
from pathlib import Path

import numpy as np
import pytest

from cache import open_store
from pipeline.errors import DataError
from pipeline.report.features import NEAREST
from stages.embed import main as embed
from stages.features import main
from tests.stages.browser import CHROMIUM, Page, drawn
from tests.stages.embedding import SUITE, arguments, demonstrations, settings

GRID = {"size": 2, "layer": -1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    demonstrations(folder)
    embed(arguments(folder, folder, grid=GRID))
    return folder


def show(folder: Path, *argv: str) -> str:
    places = ("--embeddings", str(folder / "out"), "--demos", str(folder / "demos"), "--out", str(folder / "page.html"))
    main([SUITE, "--params", str(settings(folder, grid=GRID)), *places, *argv])
    return (folder / "page.html").read_text()


def test_the_nearest_frames_are_those_of_the_likest_features(folder: Path) -> None:
    says = Page(show(folder)).says()
    store = open_store(folder / "out" / f"{SUITE}.zarr")
    pooled = store.read("image/agentview", 0, store.rows)[:, 0].astype(np.float32)
    pooled -= pooled.mean(0)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    episode = np.repeat(np.arange(len(store.episodes)), store.episodes.length)
    row = int(np.linspace(0, store.rows - 1, 7).astype(int)[1])
    likeness = pooled @ pooled[row]
    best = sorted((likeness[episode == e].max() for e in set(episode) - {episode[row]}), reverse=True)[:NEAREST]
    shown = says.partition("demo")[2].partition("task")[0]
    assert re.findall(r"\d\.\d\d", shown) == [f"{value:.2f}" for value in best]
    assert "the gripper holds the black bowl" in says and all(text in says for text in store.texts.instructions)


def test_other_sentences_and_other_demonstrations(folder: Path, tmp_path: Path) -> None:
    says = Page(show(folder, "--sentences", "a plate of its own")).says()
    assert "a plate of its own" in says and "the gripper holds" not in says
    demonstrations(tmp_path, [20])
    with pytest.raises(DataError, match=r"was made of .*demo_\d, which is not among the demonstrations given"):
        show(folder, "--demos", str(tmp_path / "demos"))


def test_another_encoder_than_the_stores_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"embed\.encoder is another than the store's: seed is 0 in the store, 1 now"):
        show(folder, "--set", "embed.encoder.seed=1")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it(folder: Path, tmp_path: Path) -> None:
    found = drawn(show(folder), tmp_path, 400)
    assert found["over"] == 0 and found["images"] and not found["violations"]
