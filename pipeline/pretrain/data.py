"""The pictures of scenes in memory, with what is so in each and where things are in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int8, UInt8
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from pipeline.errors import DataError
from pipeline.libero.sim.simulator import CAMERAS
from pipeline.scenes.facts import AGENTVIEW_ONLY, VISIBLE_PIXELS, Fact, Judge
from pipeline.scenes.state import OTHER, THINGS, Contents
from pipeline.scenes.store import Pictures
from pipeline.scenes.words import NAMES

NOUNS = tuple(dict.fromkeys(names[0] for names in NAMES.values()))
"""What things are called: the classes of a patch, and the columns of positions."""
SHOWN = 0.12  # of a patch, that a thing fills at least to be what the patch shows
READ_ROWS = 1024
JUDGED_SOMEWHERE = ("instruction", "centre")  # in some scenes only


@dataclass(frozen=True)
class Samples:
    """Rows of pictures. C counts CAMERAS, P the patches of a picture, row by row.

    Attributes:
        images: pictures of each camera.
        facts: all that is said of any row.
        truth: 1, 0 or -1 of each fact in each camera's picture.
        patch_noun: number in NOUNS of what a patch shows, -1 for none.
        patch_place: where the middle of that is, metres; NaN for none.
        place: where the one of each noun is that is nearest to the hand, of those shown, metres; NaN for none.
        shown: how many of each noun a picture shows.
        hand: position, metres, and gap between the fingers, metres.
        scene, varied: as in the store.

    Places are from the robot's base in the agentview picture, and from the hand, in its axes, in that of the hand.
    """

    images: dict[str, UInt8[np.ndarray, "N S S 3"]]
    facts: tuple[Fact, ...]
    truth: Int8[np.ndarray, "N C F"]
    patch_noun: Int8[np.ndarray, "N C P"]
    patch_place: Float32[np.ndarray, "N C P 3"]
    place: Float32[np.ndarray, "N C K 3"]
    shown: Int8[np.ndarray, "N C K"]
    hand: Float32[np.ndarray, "N 4"]
    scene: np.ndarray
    varied: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def sayable(self) -> Bool[np.ndarray, "N C"]:
        """Of which pictures anything can be said: of a few every fact is too near a border."""
        return (self.truth == 1).any(2)

    def rows(self, rows: np.ndarray) -> "Samples":
        """Return these rows, by their numbers."""
        arrays: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                arrays[name] = value[rows]
        return replace(self, images={camera: x[rows] for camera, x in self.images.items()}, **arrays)


def load(path: Path, splits: Sequence[int], patches: int) -> Samples:
    """Read the rows of these splits.

    Args:
        path: of the store.
        splits: of store.TRAIN and so on.
        patches: along a side of a picture.

    Raises:
        DataError: there are none of them.
    """
    store = Pictures(path)
    rows = np.flatnonzero(np.isin(store.split, splits))
    if not len(rows):
        raise DataError(f"{path}: has no states of split {list(splits)}. Raise scenes.units or scenes.held_out_units")
    state = {name: values[rows] for name, values in store.state().items()}
    images, things, pixels = _pictures(store, rows, patches)
    nouns = {s: np.array([NOUNS.index(NAMES[kind][0]) for kind in c.kinds]) for s, c in store.contents.items()}
    facts, truth = _truth(store.contents, state, pixels)
    place = _in_frames(state, state["thing/position"])
    nearest, shown = _nearest(place, pixels >= VISIBLE_PIXELS, state["scene"], nouns)
    return Samples(
        images=images,
        facts=facts,
        truth=truth,
        patch_noun=_nouns_of(things, state["scene"], nouns),
        patch_place=_places_of(things, place),
        place=nearest,
        shown=shown,
        hand=np.concatenate([state["hand/position"], state["hand/gap"][:, None]], 1).astype(np.float32),
        scene=state["scene"],
        varied=state["varied"],
    )


def _pictures(store: Pictures, rows: np.ndarray, patches: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return the images, what each patch shows (N, C, P), and the pixels of each thing (N, C, THINGS)."""
    images, shows, pixels = {}, [], []
    for camera in CAMERAS:
        parts = []
        shown = np.empty((len(rows), patches**2), np.int8)
        count = np.empty((len(rows), THINGS), np.int32)
        for at in tqdm(range(0, len(rows), READ_ROWS), desc=f"reading {camera}", leave=False):
            some = rows[at : at + READ_ROWS]
            span = slice(int(some[0]), int(some[-1]) + 1)
            parts.append(store.read(f"image/{camera}", span)[some - some[0]])
            labels = store.read(f"label/{camera}", span)[some - some[0]]
            shown[at : at + len(some)], count[at : at + len(some)] = _count(labels, patches)
        images[camera] = np.concatenate(parts)
        shows.append(shown)
        pixels.append(count)
    return images, np.stack(shows, 1), np.stack(pixels, 1)


def _count(labels: np.ndarray, patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which thing fills most of each patch, OTHER if hardly any does, and the pixels of each thing."""
    count, size = len(labels), labels.shape[-1] // patches
    blocks = labels.reshape(count, patches, size, patches, size)
    of_thing = np.stack([(blocks == k).sum((2, 4), dtype=np.int32) for k in range(THINGS)], -1)
    most = of_thing.argmax(-1)
    shown = np.where(of_thing.max(-1) >= SHOWN * size**2, most, OTHER)
    return shown.reshape(count, -1), of_thing.sum((1, 2))


def _truth(
    contents: dict[int, Contents], state: dict[str, np.ndarray], pixels: np.ndarray
) -> tuple[tuple[Fact, ...], np.ndarray]:
    """Return all facts of all scenes, and the truth of each in each picture."""
    judged = {}
    for scene in np.unique(state["scene"]):
        rows = np.flatnonzero(state["scene"] == scene)
        own = {name: values[rows] for name, values in state.items()}
        judged[scene] = (rows, *Judge(contents[scene], own, pixels[rows]).facts())
    facts = tuple(dict.fromkeys(fact for _, found, _ in judged.values() for fact in found))
    column = {fact: i for i, fact in enumerate(facts)}
    # What is said of a thing that the scene does not have is not so; of what is not judged in the scene it depends.
    truth = np.full((len(state["scene"]), len(CAMERAS), len(facts)), -1, np.int8)
    truth[:, 1:, [fact.predicate in AGENTVIEW_ONLY for fact in facts]] = 0
    named = {
        text: {NAMES[c.kinds[i]][0] for i in involved}
        for c in contents.values()
        for text, involved in zip(c.tasks, c.involved, strict=True)
    }
    for scene, (rows, found, values) in judged.items():
        here = {NAMES[kind][0] for kind in contents[scene].kinds}
        for fact in facts:
            of = named.get(fact.names[0], set()) if fact.predicate == "instruction" else set(fact.names)
            if fact.predicate in JUDGED_SOMEWHERE and of <= here:
                truth[rows, :, column[fact]] = 0
        columns = np.array([column[fact] for fact in found])
        truth[rows[:, None, None], np.arange(len(CAMERAS))[:, None], columns] = values
    return facts, truth


def _in_frames(state: dict[str, np.ndarray], position: np.ndarray) -> np.ndarray:
    """Return positions (N, C, THINGS, 3): from the base, and from the hand in its axes."""
    rotation = Rotation.from_quat(state["lowdim/ee_pose"][:, 3:]).as_matrix()
    from_hand = np.einsum("nji,nkj->nki", rotation, position - state["hand/position"][:, None])
    return np.stack([position, from_hand], 1).astype(np.float32)


def _nouns_of(things: np.ndarray, scene: np.ndarray, nouns: dict[int, np.ndarray]) -> np.ndarray:
    """Return the number in NOUNS of each patch's thing; -1 for none."""
    result = np.full_like(things, -1)
    for s, of_things in nouns.items():
        rows = scene == s
        result[rows] = np.append(of_things, np.full(THINGS - len(of_things) + 1, -1))[things[rows]]
    return result


def _places_of(things: np.ndarray, place: np.ndarray) -> np.ndarray:
    found = np.take_along_axis(place, np.maximum(things, 0)[..., None].astype(np.int64), 2)
    return np.where((things == OTHER)[..., None], np.float32(np.nan), found)


def _nearest(
    place: np.ndarray, visible: np.ndarray, scene: np.ndarray, nouns: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each noun, the place of the visible thing that is nearest to the hand, and how many are visible."""
    result = np.full((*place.shape[:2], len(NOUNS), 3), np.nan, np.float32)
    shown = np.zeros(result.shape[:3], np.int8)
    far = np.linalg.norm(place[:, 1], axis=-1)
    for s, of_things in nouns.items():
        rows = np.flatnonzero(scene == s)
        for noun in np.unique(of_things):
            mine = np.flatnonzero(of_things == noun)
            for camera in range(place.shape[1]):
                seen = visible[rows, camera][:, mine]
                nearest = mine[np.where(seen, far[rows][:, mine], np.inf).argmin(1)]
                result[rows, camera, noun] = np.where(
                    seen.any(1)[:, None], place[rows, camera, nearest], np.float32(np.nan)
                )
                shown[rows, camera, noun] = seen.sum(1)
    return result, shown
