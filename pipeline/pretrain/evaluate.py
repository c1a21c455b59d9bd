"""What a CLIP makes of pictures of scenes that it was not trained on: matching, relations, places."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from pipeline.libero.sim.simulator import CAMERAS
from pipeline.pretrain.captions import CHANGES, Writer
from pipeline.pretrain.data import NOUNS, Samples

AMONG = 100
"""Pictures and sentences of one retrieval."""
RIDGES = tuple(10.0**k for k in range(-2, 5))
TINY = 1e-12  # of the largest eigenvalue, that none is below which is not zero
PROBED = ("black bowl", "plate")


def matching(
    samples: Samples,
    image: Float32[np.ndarray, "N D"],
    text: Callable[[list[str]], Float32[np.ndarray, "K D"]],
    seed: int,
    held_out: bool,
) -> dict[str, Any]:
    """Return how often a sentence finds a picture of which it is so among AMONG, and likewise a picture a sentence.

    Also how often a picture prefers its sentence to the same with a relation changed, or two names exchanged, or with
    another name of the scene.

    Args:
        image: pooled features of the agentview pictures of all rows; those of which nothing can be said are left out.
        text: gives features of sentences.
        held_out: sentences said in ways that training never used.
    """
    rng = np.random.default_rng(seed)
    writer = Writer(samples)
    image = unit(image)
    picture_of, sentence_of, chance = [], [], []
    told: dict[str, list[np.bool_]] = {kind: [] for kind in CHANGES}
    sayable = np.flatnonzero(samples.sayable[:, 0])
    for rows in np.array_split(rng.permutation(sayable), max(1, len(sayable) // AMONG)):
        captions = writer.write(rows, np.zeros_like(rows), rng, held_out)
        features = unit(text(captions.texts))
        cosine = image[rows] @ features.T
        count = len(rows)
        right, changed = cosine[:, :count].diagonal(), cosine[:, count:].diagonal()
        for kind, name in enumerate(CHANGES):
            told[name] += list((right > changed)[captions.changed == kind])
        # Any picture of which the sentence is so is a right one, and the other way round.
        so = captions.label[:, :count] == 1
        sentence_of += list(so[np.arange(count), cosine[:, :count].argmax(1)])
        picture_of += list(so[cosine[:, :count].argmax(0), np.arange(count)])
        chance.append(so.mean())
    return {
        "sentence_to_picture": _share(picture_of),
        "picture_to_sentence": _share(sentence_of),
        "one_relation_changed": _share([*told["relation"], *told["places"]]),
        "one_name_changed": _share(told["name"]),
        "retrieval_by_chance": round(float(np.mean(chance)), 4),
    }


def unit(features: np.ndarray) -> np.ndarray:
    """Return features (N, F) of length 1."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _share(right: Sequence[np.bool_]) -> dict[str, int]:
    return {"n": len(right), "right": int(sum(map(bool, right)))}


def linear_probe(
    features: Float[np.ndarray, "N F"], targets: Float[np.ndarray, "N 3"]
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a ridge regression from features (M, F) to targets (M, 3); None where no row's target is known (NaN).

    The strength of the ridge is the one of RIDGES that errs least on each row when that alone is left out.
    """
    known = ~np.isnan(targets).any(1)
    if not known.any():
        return None
    x, y = features[known].astype(np.float64), targets[known].astype(np.float64)
    mean, std, centre = x.mean(0), x.std(0) + 1e-6, y.mean(0)
    x, y = (x - mean) / std, y - centre
    values, vectors = _spectrum(x)
    turned = vectors.T @ y
    errors, duals = [], []
    for ridge in RIDGES:
        strength = ridge * x.shape[1]
        shrunk = 1 / (values + strength) - 1 / strength
        duals.append(vectors @ (turned * shrunk[:, None]) + y / strength)  # (x x' + strength)^-1 y
        left_out = duals[-1] / (vectors**2 @ shrunk + 1 / strength)[:, None]  # by that inverse's diagonal
        errors.append(np.linalg.norm(left_out, axis=1).mean())
    weights = x.T @ duals[int(np.argmin(errors))]
    return lambda some: ((some - mean) / std) @ weights + centre


def _spectrum(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of x x' that are not zero, and its eigenvectors, by the smaller of x x' and x' x."""
    if len(x) <= x.shape[1]:
        values, vectors = np.linalg.eigh(x @ x.T)
        there = values > TINY * values[-1]
        return values[there], vectors[:, there]
    values, turns = np.linalg.eigh(x.T @ x)
    there = values > TINY * values[-1]
    return values[there], x @ turns[:, there] / np.sqrt(values[there])


Probes = dict[str, Callable[[np.ndarray], np.ndarray] | None]


def fit_probes(features: Float[np.ndarray, "N F"], samples: Samples, camera: int = 0) -> Probes:
    """Return linear probes for PROBED and, of the agentview, the gripper, fitted on the pictures of one camera.

    Of pictures with one such thing: which of two is meant is no question of where it is.
    """
    return {name: linear_probe(features, places) for name, places in _probed(samples, camera).items()}


def probe_errors(
    probes: Probes, features: Float[np.ndarray, "N F"], samples: Samples, camera: int = 0
) -> dict[str, dict[str, float]]:
    """Return the errors of probes on other pictures, centimetres: mean, median, and of how many."""
    found = {}
    for name, places in _probed(samples, camera).items():
        known, probe = ~np.isnan(places).any(1), probes[name]
        if probe is None or not known.any():
            continue
        errors = 100 * np.linalg.norm(probe(features[known]) - places[known], axis=1)
        found[name] = {
            "mean_cm": round(float(errors.mean()), 3),
            "median_cm": round(float(np.median(errors)), 3),
            "n": len(errors),
        }
    return found


def _probed(samples: Samples, camera: int) -> dict[str, Float32[np.ndarray, "N 3"]]:
    places = {noun: _alone(samples, camera, noun) for noun in PROBED}
    if camera == list(CAMERAS).index("agentview"):
        places["gripper"] = samples.hand[:, :3]
    return places


def _alone(samples: Samples, camera: int, noun: str) -> Float32[np.ndarray, "N 3"]:
    """Return where the thing of this noun is, metres; NaN where a picture shows none, or more than one."""
    k = NOUNS.index(noun)
    return np.where((samples.shown[:, camera, k] == 1)[:, None], samples.place[:, camera, k], np.float32(np.nan))
