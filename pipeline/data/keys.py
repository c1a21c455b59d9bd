"""What `demos.keys` maps: your names to the keys of a data set; and what is said of a key that is not there."""

from collections.abc import Iterable, Mapping

from pipeline.errors import did_you_mean
from pipeline.libero.settings import Keys

LITERAL = "="
"""With this before it, `demos.keys.instruction` is the instruction itself, of all demonstrations."""


def pictures(keys: Keys) -> dict[str, str]:
    """Return the key of each camera, by the name of its setting."""
    return {f"demos.keys.cameras.{name}": key for name, key in keys.cameras.items()}


def numbers(keys: Keys) -> dict[str, str]:
    """Return the key of each state and of the action, by the name of its setting."""
    return {**{f"demos.keys.state.{name}": key for name, key in keys.state.items()}, "demos.keys.action": keys.action}


def missing(setting: str, key: str, known: Iterable[str]) -> str:
    """Return that there is no such key."""
    return f"has no {key!r}, which {setting} names.{did_you_mean(key, known)}"


def signals(keys: Keys) -> dict[str, str]:
    """Return the key of each row signal of the store: the states, and `action`."""
    return {**keys.state, "action": keys.action}


def inventory(what: Mapping[str, str]) -> str:
    """Return what a data set has, in words."""
    return "It has " + ", ".join(f"{key} ({value})" for key, value in sorted(what.items()))
