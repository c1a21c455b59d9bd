"""Sentences for facts, in several ways of speaking; some ways are held out from training."""

import re

import numpy as np

from pipeline.libero.paraphrase import say_otherwise
from pipeline.scenes.facts import Fact
from pipeline.scenes.words import IN, NAMES, ON

# predicate -> ways to say it; the last one is held out. {in} is "in" or "on", as the second name asks for.
WAYS: dict[str, tuple[str, ...]] = {
    "left_of": (
        "the {0} is to the left of the {1}",
        "a {0} left of the {1}",
        "the {0} on the left side of the {1}",
        "left of the {1} is a {0}",
        "the {1} has a {0} to its left",
        "look left of the {1} to find the {0}",
        "to the left of the {1} there is a {0}",
    ),
    "right_of": (
        "the {0} is to the right of the {1}",
        "a {0} right of the {1}",
        "the {0} on the right side of the {1}",
        "right of the {1} is a {0}",
        "the {1} has a {0} to its right",
        "look right of the {1} to find the {0}",
        "to the right of the {1} there is a {0}",
    ),
    "front_of": (
        "the {0} is in front of the {1}",
        "a {0} in front of the {1}",
        "the {0} at the front of the {1}",
        "at the front of the {1} is a {0}",
        "the {1} has a {0} in front of it",
        "look in front of the {1} to find the {0}",
        "in front of the {1} there is a {0}",
    ),
    "behind": (
        "the {0} is behind the {1}",
        "a {0} behind the {1}",
        "the {0} at the back of the {1}",
        "behind the {1} is a {0}",
        "the {1} has a {0} behind it",
        "look behind the {1} to find the {0}",
        "behind the {1} there is a {0}",
    ),
    "next_to": (
        "the {0} is next to the {1}",
        "a {0} beside the {1}",
        "the {0} next to the {1}",
        "beside the {1} is a {0}",
        "the {1} has a {0} next to it",
        "look next to the {1} to find the {0}",
        "the {0} stands close by the {1}",
    ),
    "between": (
        "the {0} is between the {1} and the {2}",
        "a {0} between the {2} and the {1}",
        "the {0} between the {1} and the {2}",
        "between the {1} and the {2} is a {0}",
        "the {1} and the {2} have a {0} between them",
        "look between the {1} and the {2} to find the {0}",
        "in between the {1} and the {2} there is a {0}",
    ),
    "on": (
        "the {0} is {in} the {1}",
        "a {0} {in} the {1}",
        "the {0} lies {in} the {1}",
        "{in} the {1} is a {0}",
        "the {1} has a {0} {in} it",
        "look {in} the {1} to find the {0}",
        "{in} the {1} there is a {0}",
    ),
    "nearest": (
        "the {0} is the nearest to the {1}",
        "of all objects the {0} is nearest to the {1}",
        "nearest to the {1} is the {0}",
        "the {1} has the {0} nearest to it",
        "of all objects, nearest to the {1} is the {0}",
        "nothing is nearer to the {1} than the {0}",
    ),
    "centre": (
        "the {0} is in the middle of the table",
        "a {0} at the table center",
        "the {0} at the centre of the table",
        "in the middle of the table is a {0}",
        "the table has a {0} at its centre",
        "the {0} stands in the centre",
    ),
    "above": (
        "the gripper is above the {0}",
        "the robot's hand is over the {0}",
        "the gripper over the {0}",
        "over the {0} is the gripper",
        "the robot has its hand over the {0}",
        "the hand hovers above the {0}",
    ),
    "nearest_to_hand": (
        "the {0} is the nearest to the gripper",
        "nearest to the gripper is the {0}",
        "of all objects the {0} is nearest to the robot's hand",
        "the gripper has the {0} nearest to it",
        "of all objects, nearest to the gripper is the {0}",
        "nothing is nearer to the gripper than the {0}",
    ),
    "holding": (
        "the gripper holds the {0}",
        "the robot is holding the {0}",
        "the {0} is in the gripper",
        "in the gripper is the {0}",
        "the gripper has the {0}",
        "the robot has the {0} in its hand",
    ),
    "gripper": (
        "the gripper is {0}",
        "an {0} gripper",
        "the robot's hand is {0}",
        "the gripper of the robot is {0}",
        "the robot has an {0} gripper",
        "the fingers of the gripper are {0}",
    ),
    "part": (
        "the {0} is {1}",
        "the {0} stands {1}",
        "an {1} {0}",
        "{1} is the {0}",
        "there is an {1} {0}",
        "somebody left the {0} {1}",
    ),
    "present": (
        "there is a {0}",
        "a {0}",
        "a picture of a {0}",
        "here is a {0}",
        "look at the {0}",
        "one can see a {0}",
    ),
}
SWITCHED = ("the {0} is {1}", "the {0} is switched {1}", "a {0} that is {1}", "somebody turned the {0} {1}")
HOLDS_NOTHING = ("the gripper is empty", "the robot holds nothing", "nothing is in the gripper", "the hand is free")
SYNONYMS = {name: others for names in NAMES.values() for name, *others in [names]}
OTHER_NAME = 0.25  # how often a thing is called by another of its names


def say(fact: Fact, rng: np.random.Generator, held_out: bool = False) -> str:
    """Return a sentence for a fact.

    Args:
        held_out: said in a way that training never uses, the things by their first names.
    """
    if fact.predicate == "instruction":
        return say_otherwise(fact.names[0], rng, held_out)
    ways = WAYS[fact.predicate]
    if fact.names == ("nothing",):
        ways = HOLDS_NOTHING
    elif fact.names[-1] in ON:
        ways = SWITCHED
    way = ways[-1] if held_out else ways[rng.integers(len(ways) - 1)]
    names = [name if held_out else _called(name, rng) for name in fact.names]
    into = "in" if any(word in fact.names[-1] for word in IN) else "on"
    said = way.replace("{in}", into).format(*names)
    return re.sub(r"\b(an?) (?=(\w))", lambda match: "an " if match[2] in "aeiou" else "a ", said)


def _called(name: str, rng: np.random.Generator) -> str:
    others = SYNONYMS.get(name)
    return others[rng.integers(len(others))] if others and rng.random() < OTHER_NAME else name
