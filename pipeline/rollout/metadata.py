"""What a policy server says of itself when a client connects: as plain values, and checked."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.inference.openpi import DEFAULT_ACTION_STEPS
from pipeline.libero.conventions import ACTION_DIM

MAX_COUNT = 1000  # of observations, control steps and actions: twice as many as the longest episode has


def plain(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return metadata as plain JSON values."""

    def convert(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)

    def named(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): named(each) for key, each in value.items()}
        return [named(each) for each in value] if isinstance(value, list | tuple) else value

    return json.loads(json.dumps(named(metadata), default=convert))


def is_ours(metadata: Mapping[str, Any]) -> bool:
    """Return whether a server is `stages.serve`, which says what it wants."""
    return {"request", "inputs", "history", "outputs"} <= set(metadata)


def action_steps(metadata: Mapping[str, Any], url: str) -> int:
    """Return how many actions of a chunk to carry out: as many as the server says, else as openpi's example does.

    Raises:
        PipelineError: what it says is no such number.
    """
    if metadata.get("n_action_steps") is None:
        return DEFAULT_ACTION_STEPS
    return _count(metadata, "n_action_steps", url, ". Set eval_libero.n_action_steps, or mend the server's metadata")


def check_ours(metadata: Mapping[str, Any], url: str) -> None:
    """Refuse metadata of a server like `stages.serve` that cannot be: names the entry and its value.

    Raises:
        PipelineError: an entry is missing, of another type, or out of range.
    """
    if not isinstance(metadata["inputs"], Mapping) or not metadata["inputs"]:
        raise _wrong(url, "inputs", metadata["inputs"], "not inputs by name")
    for name in ("history.n_obs_steps", "history.control_steps_apart"):
        _count(metadata, name, url)
    shape = _entry(metadata, "outputs.actions.shape")
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)
    if not is_shape or not 1 <= shape[0] <= MAX_COUNT or ("own" not in metadata and shape[1] != ACTION_DIM):
        raise _wrong(url, "outputs.actions.shape", shape, f"not [H, {ACTION_DIM}] with H from 1 to {MAX_COUNT}")
    if not isinstance(metadata.get("sim") or {}, Mapping):
        raise _wrong(url, "sim", metadata["sim"], "not settings by name")


def _entry(metadata: Any, name: str) -> Any:
    """Return what stands at outer.inner, or None."""
    for part in name.split("."):
        metadata = metadata.get(part) if isinstance(metadata, Mapping) else None
    return metadata


def _count(metadata: Mapping[str, Any], name: str, url: str, remedy: str = "") -> int:
    value = _entry(metadata, name)
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise _wrong(url, name, value, f"not a whole number from 1 to {MAX_COUNT}{remedy}")
    return value


def _wrong(url: str, name: str, value: Any, what: str) -> PipelineError:
    return PipelineError(f"{url}: the server's metadata says {name} is {str(value)[:100]!r}, {what}")
