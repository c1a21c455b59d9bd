"""configs/ -> params.yaml, by Hydra, exactly as `dvc exp run -S experiment=...` composes it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.load import from_dict
from pipeline.config.messages import unknown
from pipeline.config.text import parse
from pipeline.errors import ConfigError, did_you_mean

NOTHING = object()


def compose(overrides: Sequence[str] = (), config_dir: str | Path = "configs") -> str:
    """Return the text of params.yaml for Hydra overrides such as `experiment=libero_spatial train_flow.epochs=10`.

    Raises:
        ConfigError: an override names an unknown group, option or key, or the result is no valid Params.
    """
    directory = Path(config_dir).resolve()
    if not (directory / "config.yaml").is_file():
        raise ConfigError(f"{directory}/config.yaml: not found. Run from the repository root.")
    try:
        with initialize_config_dir(str(directory), version_base=None):
            config = hydra_compose(config_name="config", overrides=list(overrides))
        OmegaConf.resolve(config)
        text = OmegaConf.to_yaml(config)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: of a group=3
        said = str(error).strip()
        wrong = [found for text in overrides if (found := _what_is_wrong(text, directory, said))]
        raise ConfigError(f"compose {' '.join(overrides)}: " + "\n  ".join(wrong or [said])) from None
    from_dict(parse(text, "configs/"), " ".join([f"{directory.name}/", *(["with"] if overrides else []), *overrides]))
    return text


def groups(directory: Path) -> dict[str, list[str]]:
    """Return the groups of configs/ and their options."""
    found = {
        path.parent.name: sorted(p.stem for p in path.parent.glob("*.yaml")) for path in directory.glob("*/*.yaml")
    }
    return {name: found[name] for name in sorted(found) if name != "accelerate"}  # files for `accelerate launch`


def replaced(overrides: Sequence[str], text: str, config_dir: str | Path = "configs") -> list[str]:
    """Return which values of the options that `overrides` choose the experiment has replaced in the composed `text`.

    Of an option that is not the default one, those count in which it differs from that.
    """
    directory, tree = Path(config_dir), parse(text, "configs/")
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    chosen = {name: option for name, option in given.items() if name in groups(directory) and name != "experiment"}
    listed = parse((directory / "config.yaml").read_text(), "config.yaml")["defaults"]
    default = {name: option for entry in listed if isinstance(entry, dict) for name, option in entry.items()}
    composed, values = dict(_leaves(tree)), {*given} - {*chosen}
    found = []
    for group, option in chosen.items():
        usual = {} if option == default[group] else _values(directory, group, default[group])
        for name, value in _values(directory, group, option).items():
            theirs = any(name == each or name.startswith(f"{each}.") for each in values)
            if not theirs and usual.get(name, NOTHING) != value and (now := composed.get(name)) != value:
                found.append(
                    f"{name} is {json.dumps(now)} by experiment {tree['experiment']}, not {json.dumps(value)} as "
                    f"{group}={option} has it. To have that, add {name}={json.dumps(value)}"
                )
    return found


def _values(directory: Path, group: str, option: str) -> dict[str, Any]:
    """Return the values of an option's file by their dotted names."""
    return dict(_leaves({group: parse((directory / group / f"{option}.yaml").read_text(), option)}))


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}", value


def _what_is_wrong(override: str, directory: Path, said: str) -> str | None:
    """Return why Hydra, which `said` so, refuses an override, in words that lead on; None if nothing is found."""
    name, equals, value = override.lstrip("+~").partition("=")
    known = groups(directory)
    if not equals and not override.startswith("~"):
        return f"{override} is not NAME=VALUE, such as experiment=quickstart or train_flow.epochs=50"
    if name in known:
        return None if value in known[name] else f"{name} has no option {value!r}.{did_you_mean(value, known[name])}"
    if "." not in name:
        return f"no group {name!r}.{did_you_mean(name, known)} A setting is SECTION.NAME=VALUE: train_flow.epochs=50"
    if found := unknown(name):
        return found
    if name in said and override[0] not in "+~":
        return f"{name} is not there yet: write +{override}"
    if name in said and override[0] == "~":
        return f"{name} is not there, or it is null, which Hydra cannot take out: write {name}=0 {override}"
    return None
