"""Other words for LIBERO's instructions, by rule: what a person might say instead.

Some ways of speaking are for training a text encoder on, others, held out, show what it makes of words that it was not
trained on. No instruction of LIBERO-PRO or LIBERO-Plus was looked at.
"""

import re
from itertools import product

import numpy as np

PREPOSITIONS = {"on": "onto", "in": "into", "on top of": "on top of", "under": "under", "to": "to"}
PLACES = r"(?P<prep>on top of|on|in|under|to the \w+ (?:side )?of) (?P<place>.+)"

PLACED = (
    "set {thing} {prep} {place}",
    "use your hand to pick up {thing} and set it {prep} {place}",
    "find {thing} and put it {prep} {place}",
    "look for {thing}, then place it {prep} {place}",
    "have {thing} put {prep} {place}",
    "i need {thing} {prep} {place}",
    "{thing} should be {prep} {place}",
    "{thing} has to be {prep} {place}",
    "see that {thing} is {prep} {place}",
    "make sure {thing} is {prep} {place} when you are done",
)
PLACED_HELD_OUT = (
    "get {thing} and drop it {prep} {place}",
    "I want {thing} {prep} {place}",
    "transfer {thing} {onto} {place}",
)

# pattern -> ways to say it, and ways held out. {onto} is {prep} as said of a motion.
RULES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        rf"pick up (?P<thing>.+?) and (?:place|put) it {PLACES}",
        (
            "pick up {thing} and place it {prep} {place}",
            "pick up {thing} and put it {prep} {place}",
            "put {thing} {prep} {place}",
            "take {thing} and put it {prep} {place}",
            "grab {thing} and set it down {prep} {place}",
            "move {thing} {onto} {place}",
            "lift {thing} and place it {prep} {place}",
            "place {thing} {prep} {place}",
            *PLACED,
        ),
        PLACED_HELD_OUT,
    ),
    (
        rf"(?:put|place) (?P<thing>.+?) {PLACES}",
        (
            "put {thing} {prep} {place}",
            "place {thing} {prep} {place}",
            "move {thing} {onto} {place}",
            "pick up {thing} and put it {prep} {place}",
            "take {thing} and place it {prep} {place}",
            "set {thing} down {prep} {place}",
            *PLACED,
        ),
        PLACED_HELD_OUT,
    ),
    (
        r"open (?P<thing>.+)",
        (
            "open {thing}",
            "pull {thing} open",
            "pull open {thing}",
            "open up {thing}",
            "use your hand to open {thing}",
            "i need {thing} open",
            "{thing} should be open",
            "see that {thing} is open",
        ),
        ("get {thing} opened", "I want {thing} open"),
    ),
    (
        r"close (?P<thing>.+)",
        (
            "close {thing}",
            "shut {thing}",
            "push {thing} shut",
            "push {thing} closed",
            "use your hand to close {thing}",
            "i need {thing} closed",
            "{thing} should be closed",
            "see that {thing} is shut",
        ),
        ("get {thing} closed", "I want {thing} shut"),
    ),
    (
        r"turn (?P<way>on|off) (?P<thing>.+)",
        (
            "turn {way} {thing}",
            "switch {way} {thing}",
            "switch {thing} {way}",
            "turn {thing} {way}",
            "use your hand to turn {way} {thing}",
            "i need {thing} {way}",
            "{thing} should be {way}",
            "see that {thing} is {way}",
        ),
        ("get {thing} {way}", "I want {thing} {way}"),
    ),
    (
        r"push (?P<thing>.+?) to (?P<place>.+)",
        (
            "push {thing} to {place}",
            "slide {thing} to {place}",
            "move {thing} to {place}",
            "use your hand to push {thing} to {place}",
            "have {thing} go to {place}",
            "{thing} should be at {place}",
            "see that {thing} is at {place}",
        ),
        ("shove {thing} to {place}", "I want {thing} at {place}"),
    ),
    (
        rf"stack (?P<thing>.+?) {PLACES}",
        (
            "stack {thing} {prep} {place}",
            "put {thing} {prep} {place}",
            "place {thing} {prep} {place}",
            "use your hand to stack {thing} {prep} {place}",
            "i need {thing} {prep} {place}",
            "{thing} should be {prep} {place}",
            "see that {thing} is {prep} {place}",
        ),
        ("pile {thing} {prep} {place}",),
    ),
)
BEFORE = ("please", "now", "robot,", "now please", "robot, please", "so now")
AFTER = ("please", "now", "for us", "for me", "with your hand", "and then you are done")
AROUND = 0.3
"""How often something polite or idle is said before an instruction, and after it."""
SECOND_TASK = re.compile(r" and (?=(?:put|place|open|close|turn|push|stack|pick up) )(?!(?:put|place) it )")


def paraphrases(instruction: str, held_out: bool = False) -> tuple[str, ...]:
    """Return other ways to say an instruction; of two tasks in one, each in its ways.

    Args:
        held_out: the ways that no text encoder is to be trained on. The others begin with the instruction itself.
    """
    ways = [_ways(clause, held_out) for clause in SECOND_TASK.split(instruction)]
    said = [" and ".join(clauses) for clauses in product(*ways)]
    return tuple(dict.fromkeys(said if held_out else [instruction, *said]))


def say_otherwise(instruction: str, rng: np.random.Generator, held_out: bool = False) -> str:
    """Return one of an instruction's `paraphrases`; for training at times with words around it that say nothing."""
    ways = paraphrases(instruction, held_out)
    said = ways[rng.integers(len(ways))]
    if held_out:
        return said
    before, after = (around[rng.integers(len(around))] if rng.random() < AROUND else "" for around in (BEFORE, AFTER))
    return " ".join(filter(None, (before, said, after)))


def _ways(clause: str, held_out: bool) -> tuple[str, ...]:
    for pattern, ways, others in RULES:
        if match := re.fullmatch(pattern, clause):
            words = match.groupdict()
            words["onto"] = PREPOSITIONS.get(words.get("prep", ""), words.get("prep", ""))
            return tuple(way.format(**words) for way in (others if held_out else ways))
    return (f"could you {clause}",) if held_out else (clause, f"please {clause}")
