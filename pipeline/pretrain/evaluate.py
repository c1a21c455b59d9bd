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
    image = _unit(image)
    picture_of, sentence_of, chance = [], [], []
    told: dict[str, list[np.bool_]] = {kind: [] for kind in CHANGES}
    sayable = np.flatnonzero(samples.sayable[:, 0])
    for rows in np.array_split(rng.permutation(sayable), max(1, len(sayable) // AMONG)):
        captions = writer.write(rows, np.zeros_like(rows), rng, held_out)
        features = _unit(text(captions.texts))
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


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _share(right: Sequence[np.bool_]) -> dict[str, int]:
    return {"n": len(right), "right": int(sum(map(bool, right)))}


def linear_probe(
    features: tuple[Float[np.ndarray, "N F"], Float[np.ndarray, "M F"]],
    targets: tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "M 3"]],
) -> Float32[np.ndarray, " K"]:
    """Return the error, metres, of each row of the second set, of a ridge regression on the first.

    The strength of the ridge is the best of RIDGES on a fifth of the first set. Rows of unknown targets are left out.
    """
    known = [~np.isnan(t).any(1) for t in targets]
    (x, x_test), (y, y_test) = ([s[k] for s, k in zip(sets, known, strict=True)] for sets in (features, targets))
    if not len(x) or not len(x_test):
        return np.empty(0, np.float32)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = ((s - mean) / std for s in (x, x_test))
    centre = y.mean(0)
    fit, check = slice(0, len(x) * 4 // 5), slice(len(x) * 4 // 5, None)
    solve = _ridge(x[fit], y[fit] - centre)
    errors = [np.linalg.norm(x[check] @ solve(r) + centre - y[check], axis=1).mean() for r in RIDGES]
    weights = _ridge(x, y - centre)(RIDGES[int(np.argmin(errors))])
    return np.linalg.norm(x_test @ weights + centre - y_test, axis=1).astype(np.float32)


def _ridge(x: np.ndarray, y: np.ndarray) -> Callable[[float], np.ndarray]:
    """Return a function from strength, per feature, to weights; by rows or by columns, whatever is less."""
    x = x.astype(np.float64)
    if len(x) < x.shape[1]:
        values, vectors = np.linalg.eigh(x @ x.T)
        turned = vectors.T @ y
        return lambda ridge: x.T @ (vectors @ (turned / (values + ridge * x.shape[1])[:, None]))
    values, vectors = np.linalg.eigh(x.T @ x)
    turned = vectors.T @ (x.T @ y)
    return lambda ridge: vectors @ (turned / (values + ridge * x.shape[1])[:, None])


def probes(
    features: tuple[np.ndarray, np.ndarray], samples: tuple[Samples, Samples], camera: int = 0
) -> dict[str, dict[str, float]]:
    """Return the errors, centimetres, of linear probes for PROBED and the gripper: mean, median, and of how many.

    Of pictures with one such thing: which of two is meant is no question of where it is.

    Args:
        features: of the pictures of one camera of both sets of samples, (N, F) and (M, F).
        samples: to fit on, and to measure on.
    """
    found = {}
    for noun in PROBED:
        found[noun] = linear_probe(features, (_alone(samples[0], camera, noun), _alone(samples[1], camera, noun)))
    if camera == list(CAMERAS).index("agentview"):
        found["gripper"] = linear_probe(features, (samples[0].hand[:, :3], samples[1].hand[:, :3]))
    return {
        name: {
            "mean_cm": round(float(errors.mean()) * 100, 3),
            "median_cm": round(float(np.median(errors)) * 100, 3),
            "n": len(errors),
        }
        for name, errors in found.items()
        if len(errors)
    }


def _alone(samples: Samples, camera: int, noun: str) -> Float32[np.ndarray, "N 3"]:
    """Return where the thing of this noun is, metres; NaN where a picture shows none, or more than one."""
    k = NOUNS.index(noun)
    return np.where((samples.shown[:, camera, k] == 1)[:, None], samples.place[:, camera, k], np.float32(np.nan))
