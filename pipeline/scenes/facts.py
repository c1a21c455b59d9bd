"""What can be said of a picture, and whether it is so: 1 yes, -1 no, 0 not to be told, or too near the border to say.

Left and right are the agentview camera's, as in LIBERO's instructions; the front is the side towards that camera.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations

import numpy as np
from jaxtyping import Int8

from pipeline.scenes.state import Contents
from pipeline.scenes.words import NAMES, PART_NAMES, PLACE_NAMES

SIDE_M = 0.05  # by which one thing is to the left of another, at least
NEXT_M = (0.05, 0.10)  # between the boxes around two things: next to each other within, certainly not beyond
LEVEL_M = 0.05  # things next to each other, or in a row, stand about as high
TABLE_M = 0.015  # from the bottom of what stands on the table to its top
BETWEEN_M, BETWEEN_AT = (0.06, 0.10), (0.2, 0.8)  # off the line between two things; along it
NEAREST_M = 0.03  # by which the nearest is nearer than the next
ABOVE_M = (0.05, 0.09)
OPEN_M, CLOSED_M = 0.06, 0.03  # between the fingers
CENTRE, CENTRE_M = (0.585, 0.0), (0.08, 0.14)  # of the table of CENTRE_SUITES, from the robot's base
CENTRE_SUITES = ("libero_spatial", "libero_goal")
FLOOR_SUITES = ("libero_object",)
"""Whose things stand on the floor: there is no table."""
VISIBLE_PIXELS = 12
SIDES = ("left_of", "right_of", "front_of", "behind")
OF_THE_ROBOT = ("gripper", "holding", "above", "nearest_to_hand")
SPATIAL = (*SIDES, "next_to", "between", "on", "nearest")
"""Relations between things: what hard negatives change."""
AGENTVIEW_ONLY = (*SIDES, "centre", "instruction")
"""What a camera at the wrist, which turns with it, cannot tell."""

Judged = list[tuple[tuple[str, ...], np.ndarray]]
"""Names, and of each row the truth (n,) of the predicate at hand being said of them."""


@dataclass(frozen=True)
class Fact:
    """A predicate and the names of what it is said of."""

    predicate: str
    names: tuple[str, ...]


class Judge:
    """Tells of the rows of one scene what is so.

    Args:
        contents: of the scene.
        state: rows of state.FIELDS.
        pixels: (n, C, M) of each thing in each camera's picture, agentview first.
    """

    def __init__(self, contents: Contents, state: Mapping[str, np.ndarray], pixels: np.ndarray) -> None:
        self._contents = contents
        self._state = state
        self._count = len(contents.kinds)
        self._at = np.nan_to_num(state["thing/position"][:, : self._count], nan=1e3).astype(np.float64)
        self._half = state["thing/half_extent"][:, : self._count]
        self._there = state["thing/present"][:, : self._count]
        self._pixels = pixels[..., : self._count]
        movable = [i for i, kind in enumerate(contents.kinds) if kind not in PART_NAMES]
        self._bottom = self._at[..., 2] - self._half[..., 2]
        lowest = np.where(self._there[:, movable], self._bottom[:, movable], np.inf).min(1)
        self._surface = float(np.median(lowest))
        self._members: dict[str, list[int]] = {}
        for i, kind in enumerate(contents.kinds):
            self._members.setdefault(NAMES[kind][0], []).append(i)
        self._nouns = tuple(self._members)

    def facts(self) -> tuple[list[Fact], Int8[np.ndarray, "n C f"]]:
        """Return all that can be said of this scene, and of each picture whether it is so."""
        found: list[tuple[Fact, np.ndarray]] = []
        for predicate, judged in self._predicates().items():
            found += [(Fact(predicate, names), truth) for names, truth in judged]
        facts = [fact for fact, _ in found]
        truths = np.stack([self._as_seen(fact, truth) for fact, truth in found], -1)
        presence = [self._present(noun) for noun in self._nouns]
        facts += [Fact("present", (noun,)) for noun in self._nouns]
        return facts, np.concatenate([truths, np.stack(presence, -1)], -1).astype(np.int8)

    def _as_seen(self, fact: Fact, truth: np.ndarray) -> np.ndarray:
        """Return the truth (n, C) where what it is about can be seen."""
        seen = np.stack([truth] * self._pixels.shape[1], 1)
        for name in fact.names:
            for i in self._concerned(fact.predicate, name):
                seen[self._there[:, i, None] & (self._pixels[:, :, i] < VISIBLE_PIXELS)] = 0
        if fact.predicate in AGENTVIEW_ONLY:
            seen[:, 1:] = 0
        return seen

    def _concerned(self, predicate: str, name: str) -> Sequence[int]:
        """Return the things that have to be seen for a fact with this name in it."""
        if predicate == "instruction":
            return self._contents.involved[self._contents.tasks.index(name)]
        return self._members.get(_owner(name), ())

    def _present(self, noun: str) -> np.ndarray:
        most = self._pixels[..., self._members[noun]].max(-1)
        return np.where(most >= VISIBLE_PIXELS, 1, np.where(most == 0, -1, 0))

    def _predicates(self) -> dict[str, Judged]:
        pairs = list(permutations(self._nouns, 2))
        judged: dict[str, Judged] = {
            side: [(pair, self._any(self._beside(side), *pair)) for pair in pairs] for side in SIDES
        }
        judged["next_to"] = [(pair, self._any(self._next_to, *pair)) for pair in pairs]
        judged["between"] = [
            ((a, *pair), self._between(a, *pair))
            for a in self._nouns
            for pair in combinations(sorted(n for n in self._nouns if n != a), 2)
            if self._movable(a)
        ]
        judged["on"] = self._supported()
        judged["nearest"] = [(pair, self._nearest(*pair)) for pair in pairs if self._movable(pair[0])]
        if self._contents.suite in CENTRE_SUITES:
            movable = [noun for noun in self._nouns if self._movable(noun)]
            judged["centre"] = [((noun,), self._any_of(noun, self._central)) for noun in movable]
        judged["above"] = [((noun,), self._any_of(noun, self._under_the_hand)) for noun in self._nouns]
        judged["nearest_to_hand"] = self._nearest_to_hand()
        judged["holding"] = self._held()
        gap = self._state["hand/gap"]
        judged["gripper"] = [
            (("open",), np.where(gap > OPEN_M, 1, np.where(gap < OPEN_M - 0.015, -1, 0))),
            (("closed",), np.where(gap < CLOSED_M, 1, np.where(gap > CLOSED_M + 0.015, -1, 0))),
        ]
        judged["part"] = self._parts()
        judged["instruction"] = [((text,), self._fits(text, n, judged)) for n, text in enumerate(self._contents.tasks)]
        return judged

    def _movable(self, noun: str) -> bool:
        return all(self._contents.kinds[i] not in PART_NAMES for i in self._members[noun])

    def _any(self, relation: Callable[[int, int], np.ndarray], a: str, b: str) -> np.ndarray:
        """Return whether any thing named `a` stands in a relation to any named `b`."""
        rows = [
            np.where(self._there[:, i] & self._there[:, j], relation(i, j), -1)
            for i in self._members[a]
            for j in self._members[b]
        ]
        return np.max(rows, axis=0)

    def _any_of(self, noun: str, property_: Callable[[int], np.ndarray]) -> np.ndarray:
        return np.max([np.where(self._there[:, i], property_(i), -1) for i in self._members[noun]], axis=0)

    def _beside(self, side: str) -> Callable[[int, int], np.ndarray]:
        axis, sign = {"left_of": (1, -1), "right_of": (1, 1), "front_of": (0, 1), "behind": (0, -1)}[side]

        def relation(i: int, j: int) -> np.ndarray:
            ahead = sign * (self._at[:, i, axis] - self._at[:, j, axis])
            return np.where(ahead > SIDE_M, 1, np.where(ahead < 0, -1, 0))

        return relation

    def _next_to(self, i: int, j: int) -> np.ndarray:
        apart = np.abs(self._at[:, i] - self._at[:, j])[:, :2] - (self._half[:, i] + self._half[:, j])[:, :2]
        gap = np.linalg.norm(np.maximum(apart, 0), axis=1)
        level = np.abs(self._bottom[:, i] - self._bottom[:, j]) < LEVEL_M
        support = self._state["thing/support"]
        stacked = (support[:, i] == j) | (support[:, j] == i)
        return np.where((gap < NEXT_M[0]) & level & ~stacked, 1, np.where(gap > NEXT_M[1], -1, 0))

    def _between(self, a: str, b: str, c: str) -> np.ndarray:
        rows = []
        for i in self._members[a]:
            for j in self._members[b]:
                for k in self._members[c]:
                    along = (self._at[:, k] - self._at[:, j])[:, :2]
                    length = np.maximum(np.linalg.norm(along, axis=1), 1e-6)
                    from_b = (self._at[:, i] - self._at[:, j])[:, :2]
                    at = (from_b * along).sum(1) / length**2
                    off = np.abs(from_b[:, 0] * along[:, 1] - from_b[:, 1] * along[:, 0]) / length
                    inside = (at > BETWEEN_AT[0]) & (at < BETWEEN_AT[1]) & (length > 0.15)
                    outside = (off > BETWEEN_M[1]) | (at < 0.05) | (at > 0.95)
                    level = np.ptp(self._bottom[:, [i, j, k]], axis=1) < LEVEL_M
                    truth = np.where(inside & (off < BETWEEN_M[0]) & level, 1, np.where(outside, -1, 0))
                    rows.append(np.where(self._there[:, [i, j, k]].all(1), truth, -1))
        return np.max(rows, axis=0)

    def _supported(self) -> Judged:
        region = self._state["thing/region"]
        judged: Judged = []
        for noun in (n for n in self._nouns if self._movable(n)):
            for other in (n for n in self._nouns if n != noun):
                judged.append(((noun, other), self._any(self._lies_on, noun, other)))
            for r, (thing, part) in enumerate(self._contents.regions):
                place = PLACE_NAMES.get((self._contents.kinds[thing], part))
                if place and thing not in self._members[noun]:
                    judged.append(((noun, place), self._any_of(noun, partial(_is, region, r))))

            if self._contents.suite not in FLOOR_SUITES:
                judged.append(((noun, "table"), self._any_of(noun, self._on_the_table)))
        return judged

    def _lies_on(self, i: int, j: int) -> np.ndarray:
        """Return whether thing i lies on or in thing j, rather than in a part of it that has a name of its own."""
        region = self._state["thing/region"][:, i]
        part = np.array([*(part for _, part in self._contents.regions), ""])[region]  # the last one is what -1 finds
        named = np.isin(part, [p for kind, p in PLACE_NAMES if kind == self._contents.kinds[j]])
        # On top of a microwave is not in it, as "on" is said of a thing with an inside.
        unclear = (part == "top_side") & (self._contents.kinds[j] == "microwave")
        lies = self._state["thing/support"][:, i] == j
        return np.where(lies & unclear, 0, np.where(lies & ~named, 1, -1))

    def _on_the_table(self, i: int) -> np.ndarray:
        free = (self._state["thing/support"][:, i] < 0) & (self._state["hand/holding"] != i)
        stands = np.abs(self._bottom[:, i] - self._surface) < TABLE_M
        return np.where(free & stands, 1, np.where(free, 0, -1))

    def _nearest(self, a: str, b: str) -> np.ndarray:
        """Return whether, of the movable things but those named `b`, one named `a` is the nearest to the one `b`."""
        if len(self._members[b]) > 1:
            return np.zeros(len(self._at), int)
        (j,) = self._members[b]
        return self._nearest_to(self._at[:, j], [*self._members[a]], [j], 2, self._there[:, j])

    def _nearest_to_hand(self) -> Judged:
        hand, everywhere = self._state["hand/position"], np.ones(len(self._at), bool)
        return [
            ((noun,), self._nearest_to(hand, self._members[noun], [], 3, everywhere))
            for noun in self._nouns
            if self._movable(noun)
        ]

    def _nearest_to(
        self, place: np.ndarray, mine: list[int], without: list[int], axes: int, valid: np.ndarray
    ) -> np.ndarray:
        far = np.linalg.norm((self._at - place[:, None])[..., :axes], axis=-1)
        others = [
            i for i, kind in enumerate(self._contents.kinds) if kind not in PART_NAMES and i not in (*mine, *without)
        ]
        if not others:
            return np.zeros(len(far), int)
        margin = far[:, others].min(1) - far[:, mine].min(1)
        truth = np.where(margin > NEAREST_M, 1, np.where(margin < 0, -1, 0))
        return np.where(valid & self._there[:, mine].any(1), truth, -1)

    def _central(self, i: int) -> np.ndarray:
        far = np.linalg.norm(self._at[:, i, :2] - CENTRE, axis=1)
        return np.where(far < CENTRE_M[0], 1, np.where(far > CENTRE_M[1], -1, 0))

    def _under_the_hand(self, i: int) -> np.ndarray:
        off = self._state["hand/position"] - self._at[:, i]
        far = np.linalg.norm(off[:, :2], axis=1)
        held = self._state["hand/holding"] == i
        over = (far < ABOVE_M[0]) & (off[:, 2] > 0) & ~held
        return np.where(over, 1, np.where((far > ABOVE_M[1]) & ~held, -1, 0))

    def _held(self) -> Judged:
        held = self._state["hand/holding"]
        judged: Judged = [
            ((noun,), np.where(np.isin(held, self._members[noun]), 1, -1))
            for noun in self._nouns
            if self._movable(noun)
        ]
        return [*judged, (("nothing",), np.where(held < 0, 1, -1))]

    def _parts(self) -> Judged:
        judged: Judged = []
        for column, part in enumerate(self._contents.parts):
            name, states = PART_NAMES[self._contents.kinds[part.thing]][part.name]
            state = self._state["part/state"][:, column]
            judged += [((name, states[0]), state), ((name, states[1]), -state)]
        return judged

    def _fits(self, text: str, task: int, judged: Mapping[str, Judged]) -> np.ndarray:
        """Return whether an instruction can be carried out: what it says of the scene is so, and it is not done yet."""
        solved = self._state["task/solved"][:, task]
        truth = np.where(solved == 0, 1, np.where(solved == 1, -1, 0))
        involved = list(self._contents.involved[task])
        truth = np.where(self._there[:, involved].all(1), truth, -1)
        # What it says of where things are was so before they were taken.
        truth = np.where(np.isin(self._state["hand/holding"], involved), np.minimum(truth, 0), truth)
        if told := WHICH_ONE.fullmatch(text):
            given = dict(judged.get(relation(told["where"]), []))
            names = places(told["thing"], told["where"])
            return np.minimum(truth, given[names]) if names in given else np.zeros_like(truth)
        return np.zeros_like(truth) if AMBIGUOUS.search(text) else truth


WHICH_ONE = re.compile(
    r"pick up the (?P<thing>black bowl) (?P<where>(?:between|from|next to|on|in) .+?) and place it on the plate"
)
"""An instruction that tells which of two bowls is meant by where it is."""
AMBIGUOUS = re.compile(
    r"\b(?:left|right|front|back|middle) (?:plate|bowl|black bowl|moka pot|book)"
    r"|\b(?:at|in|on) the (?:back|front|middle|left|right)\b"
    r"|\bto the (?:left|right|front) of\b"
)
"""Which of several is meant, or where beside a thing, follows from LIBERO's own places, which are not kept here."""


def relation(where: str) -> str:
    """Return the predicate that "next to the plate" and the like stand for."""
    for words, predicate in (("between", "between"), ("from table center", "centre"), ("next to", "next_to")):
        if where.startswith(words):
            return predicate
    return "on"


def places(thing: str, where: str) -> tuple[str, ...]:
    """Return the names that a fact about `thing` and "between the plate and the ramekin" has."""
    if where.startswith("from table center"):
        return (thing,)
    of = re.sub(r"^(?:between|next to|on|in) ", "", where).split(" and ")
    return (thing, *sorted(name.removeprefix("the ") for name in of))


def _is(values: np.ndarray, value: int, column: int) -> np.ndarray:
    return np.where(values[:, column] == value, 1, -1)


def _owner(name: str) -> str:
    """Return the noun in the name of a part or place, "top drawer of the wooden cabinet"; any other name as it is."""
    return name.rpartition(" of the ")[2]
