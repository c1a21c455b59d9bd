"""Sentences for pictures: what is so, and the same with one relation changed, which is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int8

from pipeline.libero.paraphrase import paraphrases
from pipeline.pretrain.data import Samples
from pipeline.scenes.facts import SPATIAL, Fact
from pipeline.scenes.sentences import say

FACTS_SHARES = (0.6, 0.4)
"""Of sentences that tell one thing, and two."""
WEIGHT = {"instruction": 3.0, "present": 0.5, "between": 1.5, "on": 2.0, "next_to": 1.5, "part": 1.5, "holding": 1.5}
"""How often a predicate is spoken of, where 1 is as usual."""


@dataclass(frozen=True)
class Captions:
    """Sentences of a batch: of each picture a true one, then of each the changed one.

    Attributes:
        texts: 2 B sentences.
        label: of each picture and sentence, 1 so, -1 not so, 0 not to be told.
        changed: of which pictures there is a changed sentence; the others have a copy of the true one.
    """

    texts: list[str]
    label: Int8[np.ndarray, "B T"]
    changed: np.ndarray


class Writer:
    """Makes captions for pictures."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        predicates = [fact.predicate for fact in samples.facts]
        self._weight = np.array([WEIGHT.get(p, 1.0) for p in predicates])
        self._group = np.unique(predicates, return_inverse=True)[1]
        self._column = {fact: i for i, fact in enumerate(samples.facts)}
        self._variants: dict[tuple[str, tuple[str, ...], int], list[int]] = {}
        for i, fact in enumerate(samples.facts):
            for at in range(len(fact.names)):
                self._variants.setdefault((fact.predicate, _without(fact.names, at), at), []).append(i)

    def write(
        self, rows: np.ndarray, cameras: np.ndarray, rng: np.random.Generator, held_out: bool = False
    ) -> Captions:
        """Return captions of these pictures."""
        true, false, changed = [], [], []
        for row, camera in zip(rows, cameras, strict=True):
            truth = self._samples.truth[row, camera]
            chosen = self._choose(truth, rng)
            other = self._change(chosen, truth, rng)
            true.append(chosen)
            false.append(chosen if other is None else other)
            changed.append(other is not None)
        sentences = [*true, *false]
        texts = [self._say(facts, rng, held_out) for facts in sentences]
        here = self._samples.truth[rows, cameras]
        label = np.stack([here[:, facts].min(1) for facts in sentences], 1)
        return Captions(texts, label, np.array(changed))

    def _choose(self, truth: np.ndarray, rng: np.random.Generator) -> list[int]:
        """Return some facts that are so, each of another predicate where there are enough."""
        so = np.flatnonzero(truth == 1)  # at the least, that the gripper holds something or nothing
        share = self._weight[so] / np.bincount(self._group[so], minlength=self._group.max() + 1)[self._group[so]]
        count = min(1 + int(rng.choice(len(FACTS_SHARES), p=FACTS_SHARES)), len(so))
        return [int(i) for i in rng.choice(so, count, replace=False, p=share / share.sum())]

    def _change(self, facts: list[int], truth: np.ndarray, rng: np.random.Generator) -> list[int] | None:
        """Return the same facts, one of them changed in its relation or in one name, so that it is not so."""
        for at in rng.permutation(len(facts)):
            others = [i for i in self._near(facts[at]) if truth[i] == -1]
            if others:
                return [*facts[:at], int(rng.choice(others)), *facts[at + 1 :]]
        return None

    @cache  # noqa: B019 - one writer lives as long as the training
    def _near(self, i: int) -> list[int]:
        fact = self._samples.facts[i]
        others = [
            j for at in range(len(fact.names)) for j in self._variants[fact.predicate, _without(fact.names, at), at]
        ]
        if fact.predicate in SPATIAL:
            others += [self._column[f] for p in SPATIAL if (f := Fact(p, fact.names)) in self._column]
        return [j for j in dict.fromkeys(others) if j != i]

    def _say(self, facts: Sequence[int], rng: np.random.Generator, held_out: bool) -> str:
        parts = [say(self._samples.facts[i], rng, held_out) for i in facts]
        return (" and ", ", ")[rng.integers(2)].join(parts)


def _without(names: tuple[str, ...], at: int) -> tuple[str, ...]:
    return (*names[:at], *names[at + 1 :])


def instruction_pairs(instructions: Sequence[str], count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return `count` different instructions, each said in two ways."""
    some = rng.choice(len(instructions), min(count, len(instructions)), replace=False)
    ways = [paraphrases(instructions[i]) for i in some]
    return tuple([w[rng.integers(len(w))] for w in ways] for _ in range(2))  # type: ignore[return-value]


class Tokens:
    """Token ids of texts, without the padding behind the longest."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the ids (K, L), zero behind the end of each."""
        for text in texts:
            if text not in self._known:
                if len(self._known) > 200_000:
                    self._known.clear()
                ids = self._tokenizer([text])[0].numpy()
                self._known[text] = ids[: int(ids.argmax()) + 1].astype(np.int16)  # the end has the largest id
        found = [self._known[text] for text in texts]
        result = np.zeros((len(found), max(map(len, found))), np.int64)
        for row, ids in zip(result, found, strict=True):
            row[: len(ids)] = ids
        return result
