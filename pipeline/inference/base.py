"""What a policy does whatever computes it: checks, history, instructions, samples. Imports no torch.

`policy.Policy` computes by PyTorch, `runtime.OnnxPolicy` by ONNX Runtime.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, DataError
from pipeline.inference.observation import IMAGE_AXES, checked, instructions_of, is_image, window

TEXTS_KEPT = 1024  # features of instructions that were asked for lately
Rows = Mapping[str, np.ndarray]
"""Arrays of B rows by name."""
Encoded = Mapping[str, Any]
"""The same as arrays, or as tensors on the policy's device."""


class BasePolicy(ABC):
    """Observations in, action chunks out.

    An observation holds one entry per camera (uint8 (H, W, 3), upright, of any size; depth uint16 (H, W, 1),
    millimetres) and one per signal (float32 (k,)); `describe` has the names and units. What else it holds is left
    alone. In a batch every entry has an axis more, the first. Images that are not square are cropped at the centre to
    their shorter side.

    Args:
        described: what `describe.describe` tells of the policy.
        n_action_steps: actions of a chunk that are carried out; None for the policy's own number.

    Attributes:
        cameras: names of the images that it takes.
        signals: name of each signal that it takes -> its width k.
        horizon: H, actions of a chunk.
        action_dim: A, components of an action: LIBERO's 7, or those of the robot that was learnt from.
        n_action_steps: actions of it to carry out before the next call.
        n_obs_steps: L, observations that the policy sees at a time.
        stride: calls of `act` from one of them to the next: 1, unless fewer actions are carried out than in training.

    Raises:
        ConfigError: a number of action steps that the policy can't have.
    """

    def __init__(self, described: Mapping[str, Any], n_action_steps: int | None) -> None:
        self._described = described
        inputs, history = described["inputs"], described["history"]
        self.cameras = tuple(name for name, wants in inputs.items() if is_image(wants))
        self.signals: dict[str, int] = {name: x["shape"][0] for name, x in inputs.items() if not is_image(x)}
        self.horizon, self.action_dim = (int(n) for n in described["outputs"]["actions"]["shape"])
        self.n_obs_steps = int(history["n_obs_steps"])
        own = int(described["n_action_steps"])
        self.n_action_steps = steps_carried_out(self.horizon, self.n_obs_steps, own, n_action_steps)
        # A policy with a history learnt from observations that are so many control steps apart.
        self.stride = int(history["control_steps_apart"]) // self.n_action_steps if self.n_obs_steps > 1 else 1
        self._text = lru_cache(TEXTS_KEPT)(self._features_of)
        self._past: deque[Encoded] = deque(maxlen=1 + (self.n_obs_steps - 1) * self.stride)
        self.reset()

    def describe(self) -> dict[str, Any]:
        """Return each input's shape, dtype, unit, frame and sign, and the output's: see `inference.describe`."""
        return {**self._described, "n_action_steps": self.n_action_steps}

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: forget earlier observations, and seed the noise."""
        self._generator = self._seeded(seed)
        self._past.clear()

    def act(
        self, observation: Mapping[str, Any], instruction: str | Sequence[str], noise: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the next actions (H, A) in the environment's units, float32; of a batch (B, H, A).

        Each call draws the episode's next noise, for a batch row after row. A policy with a history takes the
        observations of earlier calls since `reset` along. Not for several threads: see `infer`.

        Args:
            noise: (H, A), or (B, H, A) for a batch, from N(0, 1); None: drawn.

        Raises:
            DataError: names what is missing or wrong in the observation, and what is wanted. The episode stays as it
                was. Also if features are not finite, for which noise has been drawn.
        """
        inputs = checked(self._described, observation)
        single = inputs[self.cameras[0]].ndim == IMAGE_AXES
        rows = {name: x[None] for name, x in inputs.items()} if single else inputs
        count = _count(rows)
        if self._past and (before := _count(self._past[-1])) != count:
            raise DataError(f"a batch of {count} observations after one of {before}: call reset() between episodes")
        given = None if noise is None else self._checked_noise(np.asarray(noise)[None] if single else noise, count)
        chunk = self.advance(rows, instructions_of(instruction, count), given)
        return chunk[0] if single else chunk

    def advance(self, observations: Rows, instructions: Sequence[str], noise: np.ndarray | None = None) -> np.ndarray:
        """Do as `act` for a batch that is known to be sound, depth being pictures: nothing is checked."""
        texts = [self._text(each) for each in instructions]  # first: one that is refused costs no image tower
        encoded = self.encode(observations)
        given = self._drawn(self._generator, len(texts)) if noise is None else noise
        chunk = self._finite(self._chunks(self._window([*self._past, encoded]), texts, given))
        self._past.append(encoded)
        return chunk

    def sample(
        self,
        observation: Mapping[str, Any],
        instruction: str,
        n: int,
        seed: int = 0,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return n action chunks for one observation, from n noises: (n, H, A). The episode stays where it is.

        Earlier observations of the episode count, as in `act`. The first chunk is what `act` gives after `reset(seed)`.

        Args:
            noise: (n, H, A) from N(0, 1); None: drawn from `seed`.

        Raises:
            DataError: as `act`, and for a batch.
        """
        if n < 1:
            raise DataError(f"{n} samples were asked for: at least 1")
        inputs = checked(self._described, observation, axes=(0,))
        given = self._drawn(self._seeded(seed), n) if noise is None else self._checked_noise(noise, n)
        newest = self.encode({name: x[None] for name, x in inputs.items()})
        past = list(self._past)
        if past and _count(past[-1]) != 1:
            raise DataError("one observation after a batch of them: call reset() between episodes")
        seen = {name: self._repeat(x, n) for name, x in self._window([*past, newest]).items()}
        return self.actions(seen, instructions_of(instruction, n), given)

    def infer(
        self, observations: Mapping[str, Any], instructions: str | Sequence[str], noise: np.ndarray
    ) -> np.ndarray:
        """Return a chunk for each row (B, H, A), a pure function of the arguments: for servers, and from any thread.

        Args:
            observations: every entry with a leading axis of B; for a policy with a history (B, L', ...), oldest first,
                up to L of them, `describe()["history"]` control steps apart. Of fewer the oldest stands in for
                those before it, as at an episode's start.
            noise: (B, H, A) from N(0, 1), such as `noise(seeds)`.

        Raises:
            DataError: as `act`, and for noise of another shape.
        """
        inputs = checked(self._described, observations, axes=(2 if self.n_obs_steps > 1 else 1,))
        count = _count(inputs)
        given = self._checked_noise(noise, count)
        texts = [self._text(each) for each in instructions_of(instructions, count)]
        encoded = self.encode(inputs) if self.n_obs_steps == 1 else self._encoded_histories(inputs)
        return self._finite(self._chunks(encoded, texts, given))

    def _encoded_histories(self, inputs: Rows) -> dict[str, Any]:
        """Return `encode` of sound observations (B, L', ...), L of them: the oldest stands in for those before it."""
        count, length = next(iter(inputs.values())).shape[:2]
        if length > self.n_obs_steps:
            raise DataError(f"{length} observations at a time; the policy sees {self.n_obs_steps}")
        flat = self.encode({name: x.reshape(-1, *x.shape[2:]) for name, x in inputs.items()})
        seen = {name: x.reshape(count, length, *x.shape[1:]) for name, x in flat.items()}
        places = np.maximum(np.arange(self.n_obs_steps) - (self.n_obs_steps - length), 0)
        return {name: x[:, places] for name, x in seen.items()}

    def noise(self, seeds: Sequence[int]) -> np.ndarray:
        """Return for each seed the noise of the first call of `act` after `reset(seed)`: (B, H, A)."""
        return np.concatenate([self._draw(self._seeded(seed)) for seed in seeds])

    def actions(self, encoded: Encoded, instructions: Sequence[str], noise: np.ndarray) -> np.ndarray:
        """Return chunks for what `encode` gave; for a policy with a history (B, L, ...), oldest first."""
        return self._finite(self._chunks(encoded, [self._text(each) for each in instructions], noise))

    @abstractmethod
    def encode(self, observations: Rows) -> dict[str, Any]:
        """Return what the network takes of a sound batch (B, ...): features of images, and the signals, float32."""

    @abstractmethod
    def _chunks(self, encoded: Encoded, texts: Sequence[Any], noise: np.ndarray) -> np.ndarray:
        """Do as `actions` with the features of each row's instruction."""

    @abstractmethod
    def _features_of(self, instruction: str) -> Any:
        """Return the features of an instruction, (1, D). Raises DataError for one that the encoder does not take."""

    @abstractmethod
    def _seeded(self, seed: int) -> Any:
        """Return a generator for `_draw`."""

    @abstractmethod
    def _draw(self, generator: Any) -> np.ndarray:
        """Return the generator's next noise, (1, H, A) float32."""

    def _finite(self, chunks: np.ndarray) -> np.ndarray:
        if not np.isfinite(chunks).all():
            raise RuntimeError(
                "the policy gives actions that are not finite: its training has diverged, or a signal is far beyond "
                "what it has seen. Look at the observation, then train again"
            )
        return chunks

    def _drawn(self, generator: Any, rows: int) -> np.ndarray:
        return np.concatenate([self._draw(generator) for _ in range(rows)])

    def _checked_noise(self, noise: np.ndarray, rows: int) -> np.ndarray:
        given, shape = np.ascontiguousarray(noise, np.float32), (rows, self.horizon, self.action_dim)
        if given.shape != shape:
            raise DataError(f"noise has shape {given.shape}, not {shape}")
        return given

    def _window(self, past: Sequence[Encoded]) -> dict[str, Any]:
        """Return the L observations that the policy sees when the last of `past` is the newest, (B, [L,] ...)."""
        if self.n_obs_steps == 1:
            return dict(past[-1])
        seen = window(past, self.n_obs_steps, self.stride)
        return {name: self._stack([before[name] for before in seen]) for name in seen[0]}

    def _stack(self, rows: Sequence[Any]) -> Any:
        """Return what observations have of one name, (B, ...) each, as (B, L, ...)."""
        return np.stack(rows, axis=1)

    def _repeat(self, row: Any, n: int) -> Any:
        """Return the one row (1, ...) n times."""
        return np.repeat(row, n, axis=0)


def steps_carried_out(
    horizon: int, n_obs_steps: int, own: int, asked: int | None, setting: str = "n_action_steps"
) -> int:
    """Return how many actions of a chunk are carried out: as many as asked for, or the policy's own number.

    Args:
        setting: what a message calls it.

    Raises:
        ConfigError: a number that the policy can't have.
    """
    steps = own if asked is None else asked
    if not 1 <= steps <= horizon:
        raise ConfigError(f"{setting} is {steps}, but the policy gives chunks of {horizon} actions: 1 to {horizon}")
    if n_obs_steps > 1 and own % steps:
        raise ConfigError(
            f"{setting} is {steps}, but the policy learnt from observations {own} steps apart: give a divisor of that"
        )
    return steps


def _count(rows: Encoded) -> int:
    return len(next(iter(rows.values())))
