"""A client's message to what the policy is given: each input present, of the right kind, finite. Nothing is guessed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import google_crc32c
import numpy as np

from pipeline.inference.codec import MessageError
from pipeline.inference.observation import MAX_INSTRUCTION
from pipeline.inference.openpi import PROMPT, SOURCES, STATE, STATE_DIM

NOISE = "noise"
MAX_PROMPT = MAX_INSTRUCTION  # characters
MAX_SIDE = 4096  # pixels
IMAGE_AXES = 3


@runtime_checkable
class Served(Protocol):
    """A policy as the server needs it: `pipeline.inference.policy.Policy` is one."""

    def describe(self) -> dict[str, Any]:
        """Return inputs, outputs and history: see `pipeline.inference.describe`."""

    def infer(
        self, observations: Mapping[str, Any], instructions: str | Sequence[str], noise: np.ndarray
    ) -> np.ndarray:
        """Return action chunks (B, H, A), a pure function of the arguments.

        Args:
            observations: per input (B, ...); for a policy with a history (B, T, ...), oldest first.
            instructions: B of them.
            noise: (B, H, A), float32, standard normal.
        """


@dataclass(frozen=True)
class Inputs:
    """What a policy wants.

    Attributes:
        images: per camera the channels and the dtype.
        states: per state its size.
        n_obs_steps: observations that an action is predicted from.
        chunk: shape of the actions and of the noise, (H, A).
        openpi: whether openpi's keys of LIBERO's observation are taken, too: not for another robot's, whatever its
            cameras and states are called.
    """

    images: Mapping[str, tuple[int, str]]
    states: Mapping[str, int]
    n_obs_steps: int
    chunk: tuple[int, int]
    openpi: bool = True

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Inputs":
        """Return what `Policy.describe` says."""
        shapes = {name: (each["shape"], each["dtype"]) for name, each in described["inputs"].items()}
        images = {name: (shape[-1], dtype) for name, (shape, dtype) in shapes.items() if len(shape) == IMAGE_AXES}
        states = {name: int(shape[0]) for name, (shape, _) in shapes.items() if name not in images}
        horizon, width = described["outputs"]["actions"]["shape"]
        return cls(images, states, described["history"]["n_obs_steps"], (horizon, width), "own" not in described)

    @property
    def keys(self) -> dict[str, list[str]]:
        """For each input the keys that it may come under: our own name, and openpi's."""
        names, sources = (*self.images, *self.states), SOURCES if self.openpi else {}
        return {name: [name, *([sources[name][0]] if name in sources else [])] for name in names}

    def words(self) -> str:
        """Return in words what a request holds."""
        images = (f"{name} {dtype} (H, W, {n})" for name, (n, dtype) in self.images.items())
        states = (f"{name} ({n},)" for name, n in self.states.items())
        wanted = ", ".join([*images, *states, f"{PROMPT} (text)"])
        if self.openpi:
            return f"{wanted}; or openpi's keys for them"
        return f"{wanted}; openpi's keys are LIBERO's, and this policy was trained on data of another robot"


@dataclass(frozen=True)
class Request:
    """One observation, checked.

    Attributes:
        observation: per input an array, states float32, with a leading axis of time if the policy has a history.
        noise: (H, A), float32: the client's, or drawn from a seed that is the observation's checksum. So the same
            observation gets the same actions, whoever else asks.
    """

    observation: dict[str, np.ndarray]
    instruction: str
    noise: np.ndarray

    @property
    def shapes(self) -> tuple:
        """Requests of the same shapes can be stacked."""
        return tuple((name, x.shape, x.dtype) for name, x in self.observation.items())


def parse(tree: Any, inputs: Inputs) -> Request:
    """Return the request that a message makes.

    Args:
        tree: what the message unpacks to.

    Raises:
        MessageError: names the key, what was found and what is wanted.
    """
    if not isinstance(tree, dict):
        raise MessageError(f"the message is {_kind(tree)}, not a dict of an observation. Wanted: {inputs.words()}")
    sources = {name: next((key for key in keys if key in tree), None) for name, keys in inputs.keys.items()}
    if missing := [name for name, key in sources.items() if key is None]:
        lacking = ", ".join(" or ".join(map(repr, inputs.keys[name])) for name in missing)
        found = ", ".join(repr(key)[:50] for key in list(tree)[:20]) or "nothing"
        raise MessageError(f"missing: {lacking}. Wanted: {inputs.words()}. Found: {found}")
    prompt = tree.get(PROMPT)
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MAX_PROMPT:
        raise MessageError(
            f"{PROMPT!r} is {_kind(prompt)}, not the instruction, a text of 1 to {MAX_PROMPT} characters"
        )
    observation = {}
    for name, key in sources.items():
        assert key is not None
        if is_image := name in inputs.images:
            array = _image(tree[key], key, *inputs.images[name])
        else:
            array = _state(tree[key], key, STATE_DIM if key == STATE else inputs.states[name])
        ours = array if key == name else SOURCES[name][1](array)
        observation[name] = ours if is_image else ours.astype(np.float32)
    observation = _in_time(observation, inputs)
    noise = _noise(tree[NOISE], inputs.chunk) if NOISE in tree else _drawn(observation, prompt, inputs.chunk)
    return Request(observation, prompt, noise)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"


def _image(image: Any, key: str, channels: int, dtype: str) -> np.ndarray:
    fits = isinstance(image, np.ndarray) and image.dtype == dtype and image.shape[-1:] == (channels,)
    if not fits or image.ndim not in (IMAGE_AXES, IMAGE_AXES + 1):
        raise MessageError(f"{key!r} is {_kind(image)}; an image is a NumPy array, {dtype}, (H, W, {channels})")
    if 0 in image.shape or max(image.shape[-3:-1]) > MAX_SIDE:
        raise MessageError(f"{key!r} has the shape {image.shape}; sides have 1 to {MAX_SIDE} pixels")
    return image


def _state(state: Any, key: str, size: int) -> np.ndarray:
    fits = isinstance(state, np.ndarray) and state.dtype.kind in "fiu" and state.shape[-1:] == (size,)
    if not fits or state.ndim not in (1, 2) or 0 in state.shape:
        raise MessageError(f"{key!r} is {_kind(state)}; wanted is a NumPy array of numbers, ({size},)")
    values = np.asarray(state, np.float64)
    finite = abs(values) <= np.finfo(np.float32).max  # NaN is not
    if not finite.all():
        where = tuple(np.argwhere(~finite)[0])
        raise MessageError(f"{key!r} holds {state[where]} in component {where[-1]}; every number must be finite")
    return values


def _in_time(observation: dict[str, np.ndarray], inputs: Inputs) -> dict[str, np.ndarray]:
    """Return arrays with an axis of time if the policy has a history, else without."""
    axes = {name: IMAGE_AXES if name in inputs.images else 1 for name in observation}
    seen = {name: x[None] if x.ndim == axes[name] else x for name, x in observation.items()}
    lengths = {name: len(x) for name, x in seen.items()}
    if len(set(lengths.values())) > 1:
        raise MessageError(f"histories of different lengths: {lengths}")
    if max(lengths.values()) > inputs.n_obs_steps:
        raise MessageError(
            f"a history of {max(lengths.values())} observations; this policy looks at {inputs.n_obs_steps}"
        )
    return seen if inputs.n_obs_steps > 1 else {name: x[0] for name, x in seen.items()}


def _drawn(observation: Mapping[str, np.ndarray], prompt: str, chunk: tuple[int, int]) -> np.ndarray:
    """Return noise from a seed that is the observation's checksum."""
    checksum = google_crc32c.value(prompt.encode(errors="replace"))
    for array in observation.values():
        checksum = google_crc32c.extend(checksum, array.tobytes())
    return np.random.default_rng(checksum).standard_normal(chunk, np.float32)


def _noise(noise: Any, chunk: tuple[int, int]) -> np.ndarray:
    if not isinstance(noise, np.ndarray) or noise.dtype.kind != "f" or noise.shape != chunk:
        raise MessageError(f"{NOISE!r} is {_kind(noise)}; wanted is float {chunk}, standard normal, or none at all")
    if not (abs(noise) < 1e3).all():  # NaN neither
        raise MessageError(f"{NOISE!r} holds numbers that no standard normal distribution gives")
    return np.asarray(noise, np.float32)
