"""A trained policy by itself: observations in, action chunks out. Nothing but its bundle is needed.

    policy = Policy.load("runs/flow/policy")
    policy.reset(seed=0)
    actions = policy.act({"agentview": rgb, ...}, "pick up the black bowl")

Observations are checked, encoded, stacked with those before them, and given to the network together with instruction
and noise. `act` keeps the state of one episode; `infer`, `encode` and `actions` keep none.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32

from pipeline.encode.clip import ClipEncoder, pick_device
from pipeline.errors import ConfigError, DataError
from pipeline.inference.describe import describe
from pipeline.inference.encoder import check_encoder, check_transform, make_encoder
from pipeline.inference.observation import centre_crop, checked, instructions_of
from pipeline.inference.source import local_bundle
from pipeline.policy.bundle import PolicyBundle, load
from pipeline.policy.network import Architecture

TEXTS_KEPT = 1024  # features of instructions that were asked for lately


class Policy:
    """A policy bundle, and the encoder that its features came from.

    An observation holds one entry per camera (uint8 (H, W, 3), upright, of any size) and one per signal (float32 (k,));
    `describe` has the names and units. What else it holds is left alone. In a batch every entry has an axis more, the
    first. Images that are not square are cropped at the centre to their shorter side.

    Args:
        encoder: the policy's; its image tower is replaced by the bundle's own, if that was tuned.
        steps: of sampling; None for the policy's own number.
        n_action_steps: actions of a chunk that are carried out; None for the policy's own number.

    Attributes:
        horizon: H, actions of a chunk.
        action_dim: A, components of an action: LIBERO's 7, or those of the robot that was learnt from.
        n_action_steps: actions of it to carry out before the next call.
        n_obs_steps: L, observations that the policy sees at a time.
        stride: calls of `act` from one of them to the next: 1, unless fewer actions are carried out than in training.
        device: of network and image tower.

    Raises:
        DataError: encoder or transform are not those that the policy was trained with.
        ConfigError: a number of action steps that the policy can't have.
    """

    def __init__(
        self, bundle: PolicyBundle, encoder: ClipEncoder, steps: int | None = None, n_action_steps: int | None = None
    ) -> None:
        check_transform(bundle.spec)
        check_encoder(bundle.spec, encoder.identity)
        if bundle.tower is not None:
            encoder.replace_tower(bundle.tower)
        arch = bundle.spec.architecture
        self.spec, self.network, self.encoder, self.device = bundle.spec, bundle.network, encoder, bundle.device
        self.horizon, self.action_dim, self.n_obs_steps = arch.horizon, arch.action_dim, arch.n_obs_steps
        self.n_action_steps = action_steps(arch, n_action_steps)
        # A policy with a history learnt from observations that are `arch.n_action_steps` control steps apart.
        self.stride = arch.n_action_steps // self.n_action_steps if arch.n_obs_steps > 1 else 1
        self._steps = steps or arch.sampling_steps
        self._known = dict(zip(bundle.spec.instructions, () if bundle.texts is None else bundle.texts, strict=True))
        self._text = lru_cache(TEXTS_KEPT)(self._features_of)
        self._past: deque[dict[str, np.ndarray]] = deque(maxlen=1 + (arch.n_obs_steps - 1) * self.stride)
        self.reset()

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | None = None,
        *,
        encoder_weights: str | Path | None = None,
        steps: int | None = None,
        n_action_steps: int | None = None,
    ) -> "Policy":
        """Read a bundle and make the encoder that it names.

        Args:
            source: directory of the bundle, or hf://user/name[@revision].
            device: torch device; None: the first GPU if there is one, else the CPU.
            encoder_weights: file of the encoder's weights, where they were a local file in training.
            steps, n_action_steps: see the class.

        Raises:
            DataError: the bundle is missing or damaged, or the weights are not those of its encoder.
            AssetError: the bundle or the encoder's weights cannot be fetched, or are a file to be named.
        """
        device = device or pick_device()
        bundle = load(local_bundle(source), device)
        return cls(bundle, make_encoder(bundle.spec, device, encoder_weights), steps, n_action_steps)

    def describe(self) -> dict[str, Any]:
        """Return each input's shape, dtype, unit, frame and sign, and the output's: see `inference.describe`."""
        return {**describe(self.spec), "n_action_steps": self.n_action_steps}

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: forget earlier observations, and seed the noise."""
        self._generator = torch.Generator().manual_seed(seed)
        self._past.clear()

    def act(self, observation: Mapping[str, Any], instruction: str | Sequence[str]) -> Float32[np.ndarray, "*B H A"]:
        """Return the next actions in the environment's units; of a batch, a chunk for each row.

        Each call draws the episode's next noise, for a batch row after row. A policy with a history takes the
        observations of earlier calls since `reset` along. Not for several threads: see `infer`.

        Raises:
            DataError: names what is missing or wrong in the observation, and what is wanted.
        """
        inputs = checked(self.spec, observation)
        single = self._is_single(inputs)
        rows = {name: x[None] for name, x in inputs.items()} if single else inputs
        count = len(next(iter(rows.values())))
        if self._past and (before := len(next(iter(self._past[-1].values())))) != count:
            raise DataError(f"a batch of {count} observations after one of {before}: call reset() between episodes")
        chunk = self.advance(rows, instructions_of(instruction, count))
        return chunk[0] if single else chunk

    def advance(
        self, observations: Mapping[str, np.ndarray], instructions: Sequence[str]
    ) -> Float32[np.ndarray, "B H A"]:
        """Do as `act` for a batch that is known to be sound: nothing is checked."""
        self._past.append(self.encode(observations))
        draws = [self._draw(self._generator) for _ in instructions]
        return self.actions(self._window(list(self._past)), instructions, np.concatenate(draws))

    def sample(
        self, observation: Mapping[str, Any], instruction: str, n: int, seed: int = 0
    ) -> Float32[np.ndarray, "n H A"]:
        """Return n action chunks for one observation, from n noises. The episode stays where it is.

        Earlier observations of the episode count, as in `act`. The first chunk is what `act` gives after `reset(seed)`.

        Raises:
            DataError: as `act`, and for a batch.
        """
        if n < 1:
            raise DataError(f"{n} samples were asked for: at least 1")
        inputs = checked(self.spec, observation, axes=(0,))
        newest = self.encode({name: x[None] for name, x in inputs.items()})
        past = list(self._past)
        if past and len(next(iter(past[-1].values()))) != 1:
            raise DataError("one observation after a batch of them: call reset() between episodes")
        window = {name: np.repeat(x, n, axis=0) for name, x in self._window([*past, newest]).items()}
        generator = torch.Generator().manual_seed(seed)
        noise = np.concatenate([self._draw(generator) for _ in range(n)])
        return self.actions(window, instructions_of(instruction, n), noise)

    def infer(
        self,
        observations: Mapping[str, Any],
        instructions: str | Sequence[str],
        noise: Float32[np.ndarray, "B H A"],
    ) -> Float32[np.ndarray, "B H A"]:
        """Return a chunk for each row, a pure function of the arguments: for servers, and from any thread.

        Args:
            observations: every entry with a leading axis of B; for a policy with a history (B, L', ...), oldest first,
                up to L of them, `describe()["history"]` control steps apart. Of fewer the oldest stands in for
                those before it, as at an episode's start.
            noise: from N(0, 1), such as `noise(seeds)`.

        Raises:
            DataError: as `act`, and for noise of another shape.
        """
        inputs = checked(self.spec, observations, axes=(2 if self.n_obs_steps > 1 else 1,))
        count = len(next(iter(inputs.values())))
        noise = np.asarray(noise, np.float32)
        if noise.shape != (count, self.horizon, self.action_dim):
            raise DataError(f"noise has shape {noise.shape}, not {(count, self.horizon, self.action_dim)}")
        texts = instructions_of(instructions, count)
        if self.n_obs_steps == 1:
            return self.actions(self.encode(inputs), texts, noise)
        length = next(iter(inputs.values())).shape[1]
        if length > self.n_obs_steps:
            raise DataError(f"{length} observations at a time; the policy sees {self.n_obs_steps}")
        flat = self.encode({name: x.reshape(-1, *x.shape[2:]) for name, x in inputs.items()})
        seen = {name: x.reshape(count, length, *x.shape[1:]) for name, x in flat.items()}
        places = np.maximum(np.arange(self.n_obs_steps) - (self.n_obs_steps - length), 0)
        return self.actions({name: x[:, places] for name, x in seen.items()}, texts, noise)

    def noise(self, seeds: Sequence[int]) -> Float32[np.ndarray, "B H A"]:
        """Return for each seed the noise of the first call of `act` after `reset(seed)`."""
        return np.concatenate([self._draw(torch.Generator().manual_seed(seed)) for seed in seeds])

    def encode(self, observations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what the network takes of a sound batch (B, ...): features of images, and the signals, float32."""
        arch = self.spec.architecture
        frames = [centre_crop(observations[camera]) for camera in arch.cameras]
        pixels = torch.cat([self.encoder.prepare(each) for each in frames])
        features = self.encoder.forward(pixels)["grid" if arch.patches else "image"].astype(np.float32)
        by_camera = np.split(features, len(frames))
        signals = {name: observations[name] for name in arch.proprio}
        return signals | dict(zip(arch.cameras, by_camera, strict=True))

    def actions(
        self, encoded: Mapping[str, np.ndarray], instructions: Sequence[str], noise: Float32[np.ndarray, "B H A"]
    ) -> Float32[np.ndarray, "B H A"]:
        """Return chunks for what `encode` gave; for a policy with a history (B, L, ...), oldest first."""
        arch = self.spec.architecture
        given = {name: torch.as_tensor(x, device=self.device) for name, x in encoded.items()}
        images, signals = ({name: given[name] for name in part} for part in (arch.cameras, arch.proprio))
        with torch.no_grad():
            text = torch.cat([self._text(each) for each in instructions])
            condition = self.network.condition(images, text, signals)
            start = torch.as_tensor(noise, device=self.device)
            chunk = self.network.head.sample(condition, start, self._steps)
            return self.network.actions(chunk).float().cpu().numpy()

    def _window(self, past: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the L observations that the policy sees when the last of `past` is the newest, (B, L, ...)."""
        if self.n_obs_steps == 1:
            return dict(past[-1])
        newest = len(past) - 1
        seen = [past[max(0, newest - i * self.stride)] for i in reversed(range(self.n_obs_steps))]
        return {name: np.stack([before[name] for before in seen], axis=1) for name in seen[0]}

    def _draw(self, generator: torch.Generator) -> Float[np.ndarray, "1 H A"]:
        return torch.randn(1, self.horizon, self.action_dim, generator=generator).numpy()  # the same on any device

    def _features_of(self, instruction: str) -> Float[torch.Tensor, "1 D"]:
        """Return the bundle's features of an instruction, or those of the text tower for one that it does not know."""
        known = self._known.get(instruction)
        features = torch.as_tensor(self.encoder.text([instruction])) if known is None else known[None]
        return features.to(self.device)

    def _is_single(self, inputs: Mapping[str, np.ndarray]) -> bool:
        return inputs[self.spec.architecture.cameras[0]].ndim == 3


def action_steps(arch: Architecture, asked: int | None, setting: str = "n_action_steps") -> int:
    """Return how many actions of a chunk are carried out: as many as asked for, or the policy's own number.

    Args:
        setting: what a message calls it.

    Raises:
        ConfigError: a number that the policy can't have.
    """
    steps = asked or arch.n_action_steps
    if steps > arch.horizon:
        raise ConfigError(f"{setting} is {steps}, but the policy gives chunks of {arch.horizon} actions")
    if arch.n_obs_steps > 1 and arch.n_action_steps % steps:
        raise ConfigError(
            f"{setting} is {steps}, but the policy learnt from observations "
            f"{arch.n_action_steps} steps apart: give a divisor of that"
        )
    return steps
