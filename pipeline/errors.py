"""The errors a person can act on. Stages print their text and exit with status 1; anything else is a defect."""

import difflib
from collections.abc import Iterable


class PipelineError(Exception):
    """Bad input or environment. The message names the file or setting, the value found and the remedy."""


class ConfigError(PipelineError):
    """params.yaml or configs/ hold something that Params does not accept."""


class DataError(PipelineError):
    """A demonstration file, store or policy is missing, damaged, or does not fit the others."""


class AssetError(PipelineError):
    """A download or asset that a setting asks for is not there."""


class SimulatorError(PipelineError):
    """The simulator cannot start: no GL backend, a missing asset, a hang."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the closest of `known`, else ' Known: a, b, c.'."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(names)}."
