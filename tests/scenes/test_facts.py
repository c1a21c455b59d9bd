"""What is said of a scene is so: on states made by hand, and on pictures of the simulator."""

import numpy as np
import pytest

from pipeline.scenes.facts import Fact, Judge, places, relation
from tests.scenes.made import CONTENTS, row

BOWL, OTHER_BOWL, RAMEKIN, PLATE, CABINET = range(5)
AGENTVIEW, WRIST = 0, 1


def judge(state: dict[str, np.ndarray], pixels: int | list[int] = 100) -> dict[Fact, list[int]]:
    """Return of each fact what it is in the agentview picture and in that of the wrist."""
    seen = np.zeros((1, 2, 10), int)
    seen[..., :5] = pixels
    facts, truth = Judge(CONTENTS, state, seen).facts()
    return {fact: list(truth[0, :, i]) for i, fact in enumerate(facts)}


def said(told: dict[Fact, list[int]], predicate: str, *names: str) -> int:
    return told[Fact(predicate, names)][AGENTVIEW]


def test_left_and_right_are_the_cameras_and_front_is_towards_it() -> None:
    told = judge(row())
    assert said(told, "right_of", "plate", "ramekin") == 1 == said(told, "left_of", "ramekin", "plate")
    assert said(told, "left_of", "plate", "ramekin") == -1 == said(told, "right_of", "ramekin", "plate")
    assert said(told, "behind", "black bowl", "plate") == 1, "of one of the two bowls it is so"
    assert said(told, "front_of", "black bowl", "plate") == 0, "the other is neither in front nor clearly behind"
    assert told[Fact("right_of", ("plate", "ramekin"))][WRIST] == 0, "a camera that turns with the wrist can't tell"


def test_between_next_to_and_nearest() -> None:
    told = judge(row())
    assert said(told, "between", "black bowl", "plate", "ramekin") == 1
    assert said(told, "between", "plate", "black bowl", "ramekin") == -1
    assert said(told, "next_to", "black bowl", "plate") == 0, "8 cm between them: near the border nothing is said"
    far = judge(row(("thing/position", (BOWL, 1), -0.05)))
    assert said(far, "next_to", "black bowl", "plate") == -1, "13 cm"
    near = judge(row(("thing/position", (BOWL, 1), 0.09)))
    assert said(near, "next_to", "black bowl", "plate") == 1 == said(near, "nearest", "black bowl", "plate")
    assert said(near, "nearest", "ramekin", "plate") == -1
    beside = judge(row(("thing/position", (RAMEKIN, 0), 0.5), ("thing/position", (RAMEKIN, 1), -0.3)))
    assert said(beside, "next_to", "ramekin", "wooden cabinet") == 1, "of large things the sides count"
    held_high = judge(row(("thing/position", (BOWL, 2), 0.3)))
    assert said(held_high, "between", "black bowl", "plate", "ramekin") == 0, "high above the line"


def test_what_lies_on_and_in_what() -> None:
    on_plate, in_drawer = ("thing/support", BOWL, PLATE), ("thing/region", OTHER_BOWL, 0)
    told = judge(row(on_plate, in_drawer, ("thing/support", OTHER_BOWL, CABINET)))
    assert said(told, "on", "black bowl", "plate") == 1
    assert said(told, "on", "black bowl", "top drawer of the wooden cabinet") == 1
    assert said(told, "on", "black bowl", "table") == -1, "neither of them stands on the table"
    assert said(told, "on", "ramekin", "table") == 1
    assert said(told, "on", "ramekin", "plate") == -1


def test_in_a_drawer_is_not_on_the_cabinet_and_in_the_air_is_not_on_the_table() -> None:
    drawer = ("thing/region", OTHER_BOWL, 0), ("thing/support", OTHER_BOWL, CABINET)
    told = judge(row(*drawer, ("thing/position", (BOWL, 2), 0.3)))
    assert said(told, "on", "black bowl", "top drawer of the wooden cabinet") == 1
    assert said(told, "on", "black bowl", "wooden cabinet") == -1
    assert said(told, "on", "black bowl", "table") == 0, "the other one hangs in the air, or leans on something"


def test_gripper_and_hand() -> None:
    told = judge(row())
    assert said(told, "gripper", "open") == 1 == said(told, "holding", "nothing") == said(told, "above", "plate")
    assert said(told, "gripper", "closed") == -1 == said(told, "above", "ramekin")
    held = judge(row(("hand/holding", ..., RAMEKIN), ("hand/gap", ..., 0.012)))
    assert said(held, "holding", "ramekin") == 1 == said(held, "gripper", "closed")
    assert said(held, "holding", "nothing") == -1 == said(held, "holding", "plate")
    assert said(held, "on", "ramekin", "table") == -1, "what is held lies on nothing"


def test_drawers_and_what_is_half_open() -> None:
    for state, (opened, closed) in ((1, (1, -1)), (-1, (-1, 1)), (0, (0, 0))):
        told = judge(row(("part/state", 0, state)))
        name = "top drawer of the wooden cabinet"
        assert (said(told, "part", name, "open"), said(told, "part", name, "closed")) == (opened, closed)


def test_of_what_cannot_be_seen_nothing_is_said() -> None:
    told = judge(row(), pixels=3)
    assert said(told, "right_of", "plate", "ramekin") == 0 == said(told, "present", "plate")
    gone = judge(row(("thing/present", PLATE, False)), pixels=[100, 100, 100, 0, 100])
    assert said(gone, "present", "plate") == -1 == said(gone, "right_of", "plate", "ramekin")


def test_instructions_fit_where_what_they_say_is_so_and_is_not_done() -> None:
    next_to, between, drawer, ambiguous = CONTENTS.tasks
    told = judge(row())
    assert said(told, "instruction", between) == 1 == said(told, "instruction", drawer)
    assert said(told, "instruction", next_to) == 0, "the bowl is neither next to the plate nor clearly not"
    far = judge(row(("thing/position", (BOWL, 1), -0.05)))
    assert said(far, "instruction", next_to) == -1
    unseen = judge(row(), pixels=[100, 100, 100, 3, 100])
    assert said(unseen, "instruction", between) == 0 != said(unseen, "instruction", drawer), "the plate can't be seen"
    taken = judge(row(("hand/holding", ..., BOWL)))
    assert said(taken, "instruction", between) <= 0, "on its way it is no longer where the words have it"
    assert said(told, "instruction", ambiguous) == 0, "which plate is meant depends on LIBERO's own placement"
    done = judge(row(("task/solved", 2, 1), ("task/solved", 1, -1)))
    assert said(done, "instruction", drawer) == -1, "it is open already"
    assert said(done, "instruction", between) == 0, "whether it is done can't be told"


@pytest.mark.parametrize(
    ("where", "predicate", "names"),
    [
        ("between the plate and the ramekin", "between", ("black bowl", "plate", "ramekin")),
        ("from table center", "centre", ("black bowl",)),
        ("next to the cookie box", "next_to", ("black bowl", "cookie box")),
        ("in the top drawer of the wooden cabinet", "on", ("black bowl", "top drawer of the wooden cabinet")),
    ],
)
def test_liberos_words_for_places(where: str, predicate: str, names: tuple[str, ...]) -> None:
    assert (relation(where), places("black bowl", where)) == (predicate, names)
