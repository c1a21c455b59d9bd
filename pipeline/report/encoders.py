"""Tables of benchmarks/results/encoders.json: what encoders make of LIBERO's scenes."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.table import NONE, Table, interval, number, percent

Tree = Mapping[str, Any]
WORDS = ("usual words", "words held out")
HELD_OUT = "instructions in words held out"
MATCHES = {
    "sentence_to_picture": "picture of a sentence, among 100",
    "picture_to_sentence": "sentence of a picture, among 100",
    "one_relation_changed": "true sentence, not the one with a relation changed",
    "one_name_changed": "nor that with another name",
}


def matching(figures: Tree) -> Table:
    """How well pictures and sentences find each other."""
    rows = [
        (f"{name}, {states}", words, *(_rate(found[states][words][match]) for match in MATCHES))
        for name, found in figures["encoders"].items()
        for states in figures["states"]
        for words in WORDS
        if words in found[states]
    ]
    return Table("Pictures and sentences", ("encoder, states", "sentences", *MATCHES.values()), rows)


def _rate(row: Tree) -> str:
    return f"{percent(row['rate'])} ({interval(row)})"


def instructions(figures: Tree) -> Table:
    """How often an instruction in words held out lies nearest to the same in LIBERO's words."""
    found = {name: each[HELD_OUT] for name, each in figures["encoders"].items() if HELD_OUT in each}
    rows = [(name, *(f"{rate['right']} of {rate['n']}" for rate in suites.values())) for name, suites in found.items()]
    head = ("encoder", *dict.fromkeys(suite for suites in found.values() for suite in suites))
    return Table("Instructions in words held out that lie nearest to the same in LIBERO's words", head, rows)


def probes(figures: Tree) -> Table:
    """How far linear probes err, and how fast features are made."""
    rows, things = [], ("black bowl", "plate", "gripper")
    for name, found in figures["encoders"].items():
        for kind in found[next(iter(figures["states"]))]["probe"]:
            errors = [
                number(found[states]["probe"][kind].get(thing, {}).get("median_cm"), "{:.2f}")
                for states in figures["states"]
                for thing in things
            ]
            rows.append((f"{name}, {kind}", *errors, number(found["images_per_s"], "{:.0f}") or NONE))
    head = [f"{thing}, {states}" for states in figures["states"] for thing in things]
    caption = "Median errors of linear probes, centimetres"
    return Table(caption, ("features", *head, "images/s"), rows, range(1, len(head) + 2))
