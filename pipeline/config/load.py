"""params.yaml -> Params, strictly."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.config.checks import contradictions
from pipeline.config.messages import message
from pipeline.config.params import Params
from pipeline.config.text import parse
from pipeline.errors import ConfigError, did_you_mean
from pipeline.policy.settings import HEADS_IN_STEPS

_PARAMS = TypeAdapter(Params)


def load(
    path: str | Path = "params.yaml", changes: Mapping[str, Any] | None = None, variant: str | None = None
) -> Params:
    """Read `path` into Params.

    Args:
        changes: settings to replace, by dotted name, such as {"policy.head": "l1"}.
        variant: one of comparison.policies, whose settings replace the file's before `changes` do.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, has an unknown or missing key, a value of the wrong type,
            values that contradict each other, or no such variant. The message names file, key and remedy.
    """
    tree, origin = _read(Path(path)), str(path)
    params = from_dict(tree, origin)
    policies = params.comparison.policies
    if variant is not None and variant not in policies:
        raise ConfigError(f"{origin}: comparison.policies has no {variant!r}.{did_you_mean(variant, policies)}")
    replaced = {**(policies[variant] if variant else {}), **(changes or {})}
    told = ", ".join(f"{name}={value}" for name, value in replaced.items())
    return _changed(tree, replaced, f"{origin} with {told}") if replaced else params


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = parse(path.read_text(), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found. Run from the repository root, or make it: make params") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}. Make it again: make params") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}, not a mapping. Make it again: make params")
    return tree


def _changed(tree: Mapping[str, Any], changes: Mapping[str, Any], origin: str) -> Params:
    """Build Params with these values, by dotted name, put in; `origin` names the result in errors."""
    copied = copy.deepcopy(dict(tree))
    for name, value in changes.items():
        *sections, key = name.split(".")
        place: Any = copied
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                raise ConfigError(f"{origin}: there is no {name}: {section} is one value")
        place[key] = value
    return _build(copied, origin)


def from_dict(tree: dict[str, Any], origin: str = "params") -> Params:
    """Build Params from a plain mapping; `origin` names it in errors."""
    params = _build(tree, origin)
    for name, changes in params.comparison.policies.items():
        _check_variant(tree, changes, f"{origin}: comparison.policies.{name}")
    for name in params.comparison.by_steps:
        changes = params.comparison.policies[name]
        for steps in params.comparison.sampling_steps:
            _check_steps(tree, changes, steps, f"{origin}: comparison.by_steps {name}, {steps} steps")
    return params


def _check_variant(tree: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> None:
    """Refuse one of comparison.policies that cannot work."""
    if "train_flow.seed" in changes:
        raise ConfigError(f"{where} changes train_flow.seed; name seeds in comparison.seeds")
    foreign = [key for key in changes if key.split(".")[0] not in ("policy", "train_flow")]
    if foreign:
        raise ConfigError(f"{where} changes {foreign[0]}; what is compared shares all but policy and train_flow")
    _changed(tree, changes, where)


def _check_steps(tree: Mapping[str, Any], changes: Mapping[str, Any], steps: int, where: str) -> None:
    """Refuse a policy of comparison.by_steps that does not take so many steps."""
    params = _changed(tree, {**changes, "policy.sampling_steps": steps}, where)
    if params.policy.head not in HEADS_IN_STEPS:
        raise ConfigError(f"{where}: policy.head {params.policy.head} takes none. Take it out")
    _changed(tree, {"eval_libero.sampling_steps": steps}, where)  # as its evaluation is asked for


def _build(tree: dict[str, Any], origin: str) -> Params:
    try:
        params = _PARAMS.validate_json(json.dumps(tree, default=str))  # JSON: lists and mappings, and no other types
        wrong = list(contradictions(params))
    except ValidationError as error:
        wrong = [message(each) for each in error.errors(include_url=False)]
    except (TypeError, ValueError, RecursionError) as error:
        wrong = [f"holds what no setting is ({error}). Make it again: make params"]
    if wrong:
        raise ConfigError(f"{origin}: " + "\n  ".join(wrong))
    return params
