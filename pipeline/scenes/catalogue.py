"""LIBERO's scenes: tasks of the same furniture and objects are one scene. 130 tasks make 32."""

import re
from dataclasses import dataclass

from pipeline.libero.suites import SUITES, Task, tasks


@dataclass(frozen=True)
class Scene:
    """One world to take pictures of.

    Attributes:
        name: of its first suite, and its number among that suite's scenes.
        suite: the first of SUITES that has it.
        tasks: of any suite that play in it, in the order of SUITES; the first one is built.
    """

    name: str
    suite: str
    tasks: tuple[Task, ...]


def scenes() -> tuple[Scene, ...]:
    """Return all scenes, in the order of their first tasks."""
    found: dict[str, list[Task]] = {}
    for suite in SUITES:
        for task in tasks(suite):
            found.setdefault(_contents(task), []).append(task)
    numbers = dict.fromkeys(SUITES, 0)
    result = []
    for members in found.values():
        suite = members[0].suite
        result.append(Scene(f"{suite}/{numbers[suite]}", suite, tuple(members)))
        numbers[suite] += 1
    return tuple(result)


def _contents(task: Task) -> str:
    """Return the kind of world, the furniture and the objects of a task, from its BDDL file, in one text."""
    text = task.bddl_file.read_text()
    parts = [re.search(r"\(problem (\w+)\)", text)]
    parts += [re.search(rf"\(:{kind}(.*?)\)", text, re.DOTALL) for kind in ("objects", "fixtures")]
    return " | ".join(" ".join(sorted(part.group(1).split())) for part in parts if part)
