"""params.yaml -> Params, strictly."""

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import dacite
import yaml

from pipeline.config.checks import check_values
from pipeline.config.params import Params
from pipeline.errors import ConfigError, did_you_mean
from pipeline.policy.settings import HEADS_IN_STEPS


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
    return _changed(tree, replaced, f"{origin} with {replaced}") if replaced else params


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found. Run from the repository root, or make it: make params") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
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
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or key not in place:
            raise ConfigError(f"{origin}: {name}: no such setting. See pipeline/config/params.py for what there is")
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
    _check_keys(tree, Params, origin, "")
    try:
        params = dacite.from_dict(Params, tree, dacite.Config(cast=[tuple], type_hooks={float: _to_float}, strict=True))
    except dacite.DaciteError as error:
        raise ConfigError(f"{origin}: {error}. See pipeline/config/params.py for what each key accepts.") from None
    check_values(params, origin)
    return params


def _to_float(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 as a string and 1 as an int; both are meant as floats where a float is declared."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check_keys(tree: dict[str, Any], cls: type, origin: str, prefix: str) -> None:
    known = {f.name for f in fields(cls)}
    hints = get_type_hints(cls)
    for key, value in tree.items():
        if key not in known:
            raise ConfigError(f"{origin}: unknown key {prefix + str(key)!r}.{did_you_mean(key, known)}")
        section = next((t for t in (hints[key], *get_args(hints[key])) if is_dataclass(t)), None)
        if isinstance(section, type) and isinstance(value, dict):
            _check_keys(value, section, origin, f"{prefix}{key}.")
    missing = sorted(known - set(tree))
    if missing:
        raise ConfigError(f"{origin}: missing key {prefix + missing[0]!r}. Make the file again: make params")
