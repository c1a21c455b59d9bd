"""What is said of a setting that is wrong: its name, its value, and what it can be."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pipeline.config.params import Params
from pipeline.errors import did_you_mean

UNNAMED = ("[key]", "float", "tuple[float, ...]")  # pydantic's own, in the place of what is wrong
WANTED = {
    "bool_type": "true or false",
    "dataclass_type": "settings by name, as params.yaml has them",
    "dict_type": "a mapping, such as {name: value}",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "tuple_type": "a list, such as [a, b]",
}


def names(cls: Any = Params, prefix: str = "") -> Iterator[str]:
    """Yield all settings by dotted name, sections included."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        name = prefix + field.name
        yield name
        for section in (hints[field.name], *get_args(hints[field.name])):
            if is_dataclass(section):
                yield from names(section, f"{name}.")


def unknown(name: str) -> str:
    """Return which part of a dotted name is no setting, and what may be meant; nothing for the name of a setting."""
    known = set(names())
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        head, here = ".".join(parts[: i - 1]), ".".join(parts[:i])
        inside = {k.removeprefix(f"{head}.") for k in known if not head or k.startswith(f"{head}.")}
        if not inside:
            return ""  # entries of a mapping: their names are free
        if here not in known:
            elsewhere = sorted(k for k in known if k.endswith(f".{parts[-1]}"))
            if elsewhere:
                return f"no setting {here!r}. Did you mean {' or '.join(map(repr, elsewhere))}?"
            return f"no setting {here!r}.{did_you_mean(parts[i - 1], {k for k in inside if '.' not in k})}"
    return ""


def message(error: Any) -> str:
    """Return one of pydantic's errors (`ValidationError.errors()`) in the words of this project."""
    kind, where, value = error["type"], [str(part) for part in error["loc"] if part not in UNNAMED], error["input"]
    name = ".".join(where)
    if kind == "unexpected_keyword_argument":
        return unknown(name) or f"{where[-1]!r} is no key: a setting stands below its section, as params.yaml has it"
    if kind == "missing":
        return f"{name} is missing. Make the file again: make params"
    shown = json.dumps(value)
    shown = shown if len(shown) < 80 else f"{shown[:77]}..."
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'|(\d+)", error["ctx"]["expected"])
        return f"{name} is {shown}; it can be " + _either([a or b for a, b in choices], value)
    if kind == "too_short":
        return f"{name} is empty; name at least {error['ctx']['min_length']}"
    wanted = f"be {WANTED[kind]}" if kind in WANTED else re.sub(r"^.* should ", "", error["msg"])
    return f"{name} is {shown}; it must {wanted}"


def _either(choices: list[str], value: Any) -> str:
    close = did_you_mean(str(value), choices)
    return ", ".join(choices[:-1]) + f" or {choices[-1]}." + (close if "mean" in close else "")
