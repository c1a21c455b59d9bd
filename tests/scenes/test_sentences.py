"""Sentences say what the facts are, in more ways than one, and never one of the held out ways by chance."""

import numpy as np

from pipeline.libero.paraphrase import paraphrases, say_otherwise
from pipeline.libero.suites import SUITES, tasks
from pipeline.scenes.facts import Fact
from pipeline.scenes.sentences import WAYS, say


def ways(fact: Fact, held_out: bool = False) -> set[str]:
    rng = np.random.default_rng(0)
    return {say(fact, rng, held_out) for _ in range(300)}


def test_a_fact_is_said_in_several_ways_and_by_several_names() -> None:
    said = ways(Fact("on", ("orange juice", "basket")))
    assert {"the orange juice is in the basket", "an orange juice in the basket"} <= said
    assert "a carton of orange juice in the basket" in said, "in is said of a basket, and an only before a vowel"
    assert ways(Fact("on", ("black bowl", "plate"))) >= {"the black bowl is on the plate", "a dark bowl on the dish"}
    assert ways(Fact("between", ("plate", "stove", "ramekin"))) >= {"a plate between the ramekin and the stove"}


def test_held_out_ways_are_not_among_the_others() -> None:
    for predicate, forms in WAYS.items():
        fact = Fact(predicate, ("plate", "stove", "ramekin")[: 1 + max(("{1}" in forms[0]), 2 * ("{2}" in forms[0]))])
        told, held_out = ways(fact), ways(fact, held_out=True)
        assert len(held_out) == 1 and not held_out & told, predicate
        assert len(told) > 2
    assert ways(Fact("holding", ("nothing",)), held_out=True) == {"the hand is free"}


def test_every_instruction_of_libero_has_paraphrases_that_keep_its_objects() -> None:
    for suite in SUITES:
        for task in tasks(suite):
            known, held_out = paraphrases(task.language), paraphrases(task.language, held_out=True)
            assert known[0] == task.language and len(known) > 2, task.language
            assert held_out and not set(known) & set(held_out), task.language
            objects = [word for word in ("bowl", "mug", "plate", "stove", "drawer", "basket") if word in task.language]
            assert all(word in text for text in (*known, *held_out) for word in objects), task.language


def test_verbs_that_are_held_out_are_never_trained_on() -> None:
    rng = np.random.default_rng(0)
    every = [task.language for suite in SUITES for task in tasks(suite)]
    told = [way for each in every for way in paraphrases(each)] + [say_otherwise(each, rng) for each in every * 20]
    words = {word for text in told for word in text.split()}
    assert not words & {"get", "drop", "want", "transfer", "shove", "pile", "could"}
    around = [text for text in told if text.startswith("please ") or text.endswith(" for us")]
    assert around, "words that say nothing"
    assert say_otherwise("open the drawer", rng, held_out=True) in {"get the drawer opened", "I want the drawer open"}


def test_two_tasks_in_one_are_each_said_in_other_words() -> None:
    said = paraphrases("turn on the stove and put the moka pot on it")
    assert "switch the stove on and move the moka pot onto it" in said
    assert "pick up the book and place it in the back compartment of the caddy" in paraphrases(
        "pick up the book and place it in the back compartment of the caddy"
    ), "picking up and placing is one task"
