"""configs/ -> params.yaml, by Hydra, exactly as `dvc exp run -S experiment=...` composes it."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.load import from_dict
from pipeline.config.messages import unknown
from pipeline.config.text import parse
from pipeline.errors import ConfigError, did_you_mean


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
        wrong = [found for text in overrides if (found := _what_is_wrong(text, directory))]
        raise ConfigError(f"compose {' '.join(overrides)}: " + "\n  ".join(wrong or [str(error).strip()])) from None
    from_dict(parse(text, "configs/"), " ".join([f"{directory.name}/", *(["with"] if overrides else []), *overrides]))
    return text


def groups(directory: Path) -> dict[str, list[str]]:
    """Return the groups of configs/ and their options."""
    found = {
        path.parent.name: sorted(p.stem for p in path.parent.glob("*.yaml")) for path in directory.glob("*/*.yaml")
    }
    return {name: found[name] for name in sorted(found) if name != "accelerate"}  # files for `accelerate launch`


def _what_is_wrong(override: str, directory: Path) -> str | None:
    """Return why Hydra refuses an override, in words that lead on; None if nothing is found."""
    name, equals, value = override.lstrip("+~").partition("=")
    known = groups(directory)
    if not equals and not override.startswith("~"):
        return f"{override} is not NAME=VALUE, such as experiment=quickstart or train_flow.epochs=50"
    if name in known:
        return None if value in known[name] else f"{name} has no option {value!r}.{did_you_mean(value, known[name])}"
    if "." not in name:
        return f"no group {name!r}.{did_you_mean(name, known)} A setting is SECTION.NAME=VALUE: train_flow.epochs=50"
    if not (found := unknown(name)) and override[0] not in "+~":
        return f"{name} is not there yet: write +{override}"
    return found or None
