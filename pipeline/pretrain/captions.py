"""Sentences for pictures: what is so, and the same with one relation changed, which is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Int8

from pipeline.libero.paraphrase import paraphrases, say_otherwise
from pipeline.pretrain.data import Samples
from pipeline.scenes.facts import SPATIAL, Fact
from pipeline.scenes.sentences import say

FACTS_SHARES = (0.6, 0.4)
"""Of sentences that tell one thing, and two."""
CHANGES = ("relation", "places", "name")
WEIGHT = {"instruction": 3.0, "present": 0.5, "between": 1.5, "on": 2.0, "next_to": 1.5, "part": 1.5, "holding": 1.5}
"""How often a predicate is spoken of, where 1 is as usual."""


@dataclass(frozen=True)
class Captions:
    """Sentences of a batch: of each picture a true one, then of each the changed one.

    Attributes:
        texts: 2 B sentences.
        label: of each picture and sentence, 1 so, -1 not so, 0 not to be told.
        changed: of each picture what is changed, of CHANGES: 0 for another relation, 1 for names that changed places,
            2 for another name of the scene; -1 where nothing could be, and the sentence is a copy of the true one.
    """

    texts: list[str]
    label: Int8[np.ndarray, "B T"]
    changed: Int8[np.ndarray, " B"]


class Writer:
    """Makes captions for pictures."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        predicates = [fact.predicate for fact in samples.facts]
        self._weight = np.array([WEIGHT.get(p, 1.0) for p in predicates])
        self._group = np.unique(predicates, return_inverse=True)[1]
        self._column = {fact: i for i, fact in enumerate(samples.facts)}
        # What is told of a scene: of other things it is not so, which needs no look at the picture.
        told = {int(s): samples.truth[samples.scene == s].any((0, 1)) for s in np.unique(samples.scene)}
        self._of_scene = {s: set(np.flatnonzero(columns)) for s, columns in told.items()}
        self._variants: dict[tuple[str, tuple[str, ...], int], list[int]] = {}
        for i, fact in enumerate(samples.facts):
            for at in range(len(fact.names)):
                self._variants.setdefault((fact.predicate, _without(fact.names, at), at), []).append(i)

    def write(
        self, rows: np.ndarray, cameras: np.ndarray, rng: np.random.Generator, held_out: bool = False
    ) -> Captions:
        """Return captions of these pictures, all of them `Samples.sayable`."""
        true, false, changed = [], [], []
        for row, camera in zip(rows, cameras, strict=True):
            truth = self._samples.truth[row, camera]
            chosen = self._choose(truth, rng)
            other, kind = self._change(chosen, truth, int(self._samples.scene[row]), rng)
            true.append(chosen)
            false.append(other)
            changed.append(kind)
        sentences = [*true, *false]
        texts = [self._say(facts, rng, held_out) for facts in sentences]
        here = self._samples.truth[rows, cameras]
        label = np.stack([here[:, facts].min(1) for facts in sentences], 1)
        return Captions(texts, label, np.array(changed, np.int8))

    def _choose(self, truth: np.ndarray, rng: np.random.Generator) -> list[int]:
        """Return some facts that are so, each of another predicate where there are enough."""
        so = np.flatnonzero(truth == 1)
        share = self._weight[so] / np.bincount(self._group[so], minlength=self._group.max() + 1)[self._group[so]]
        count = min(1 + int(rng.choice(len(FACTS_SHARES), p=FACTS_SHARES)), len(so))
        return [int(i) for i in rng.choice(so, count, replace=False, p=share / share.sum())]

    def _change(
        self, facts: list[int], truth: np.ndarray, scene: int, rng: np.random.Generator
    ) -> tuple[list[int], int]:
        """Return the same facts, one of them changed so that it is not so, and in what way; -1 if there is none."""
        here = self._of_scene[scene]
        for kind in rng.permutation(len(CHANGES)):
            for at in rng.permutation(len(facts)):
                others = [i for i in self._near(facts[at])[kind] if truth[i] == -1 and i in here]
                if others:
                    return [*facts[:at], int(rng.choice(others)), *facts[at + 1 :]], int(kind)
        return facts, -1

    @cache  # noqa: B019 - one writer lives as long as the training
    def _near(self, i: int) -> tuple[list[int], list[int], list[int]]:
        """Return, for each of CHANGES, the facts that differ from fact i by no more than that."""
        fact = self._samples.facts[i]
        relations = [Fact(p, fact.names) for p in SPATIAL] if fact.predicate in SPATIAL else []
        places = [Fact(fact.predicate, names) for names in permutations(fact.names)]
        keys = [(fact.predicate, _without(fact.names, at), at) for at in range(len(fact.names))]
        names = dict.fromkeys(j for key in keys for j in self._variants[key] if j != i)
        return self._known(relations, i), self._known(places, i), list(names)

    def _known(self, facts: Sequence[Fact], but: int) -> list[int]:
        return [j for fact in facts if (j := self._column.get(fact, but)) != but]

    def _say(self, facts: Sequence[int], rng: np.random.Generator, held_out: bool) -> str:
        parts = [say(self._samples.facts[i], rng, held_out) for i in facts]
        return (" and ", ", ")[rng.integers(2)].join(parts)


def _without(names: tuple[str, ...], at: int) -> tuple[str, ...]:
    return (*names[:at], *names[at + 1 :])


def distinct(instructions: Sequence[str]) -> list[str]:
    """Return the instructions of which no other, said in another way, is the same."""
    found: list[str] = []
    said: set[str] = set()
    for instruction in instructions:
        ways = set(paraphrases(instruction))
        if not ways & said:
            found.append(instruction)
            said |= ways
    return found


def instruction_pairs(instructions: Sequence[str], count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return `count` of `distinct` instructions, each said in two ways."""
    some = rng.choice(len(instructions), min(count, len(instructions)), replace=False)
    one, other = ([say_otherwise(instructions[i], rng) for i in some] for _ in range(2))
    return one, other


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
