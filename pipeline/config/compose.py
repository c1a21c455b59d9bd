"""configs/ -> params.yaml, by Hydra, exactly as `dvc exp run -S experiment=...` composes it."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.load import from_dict
from pipeline.errors import ConfigError


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
        tree = OmegaConf.to_container(config, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{directory}: cannot compose {' '.join(overrides) or 'the default'}: {error}") from None
    assert isinstance(tree, dict)
    from_dict({str(k): v for k, v in tree.items()}, f"{directory.name}/ with {list(overrides)}")
    return OmegaConf.to_yaml(config)
