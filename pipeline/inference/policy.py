"""A trained policy by itself: observations in, action chunks out. Nothing but its bundle is needed.

    policy = Policy.load("runs/flow/policy")
    policy.reset(seed=0)
    actions = policy.act({"agentview": rgb, ...}, "pick up the black bowl")

Observations are checked, encoded, stacked with those before them, and given to the network together with instruction
and noise. `act` keeps the state of one episode; `infer`, `encode` and `actions` keep none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32

from pipeline.encode.clip import ClipEncoder, pick_device, require_device
from pipeline.errors import ConfigError, DataError
from pipeline.inference.base import BasePolicy, steps_carried_out
from pipeline.inference.describe import describe
from pipeline.inference.encoder import check_encoder, check_transform, make_encoder
from pipeline.inference.graph import NOISE, TEXT
from pipeline.inference.graphed import graphed
from pipeline.inference.observation import centre_crop
from pipeline.inference.source import local_bundle
from pipeline.policy.bundle import PolicyBundle, load
from pipeline.policy.network import Architecture
from pipeline.policy.settings import NOISE_LEVELS


class Policy(BasePolicy):
    """A policy bundle, and the encoder that its features came from; see `BasePolicy` for what it takes and does.

    Args:
        encoder: the policy's; it stays as it is. The bundle's own image tower, if that was tuned, is used in its place.
        steps: of sampling; None for the policy's own number.
        n_action_steps: actions of a chunk that are carried out; None for the policy's own number.

    Attributes:
        spec: what the bundle tells of itself.
        device: of network and image tower.

    Raises:
        DataError: encoder or transform are not those that the policy was trained with.
        ConfigError: a number of sampling or action steps that the policy can't have.
    """

    def __init__(
        self, bundle: PolicyBundle, encoder: ClipEncoder, steps: int | None = None, n_action_steps: int | None = None
    ) -> None:
        check_transform(bundle.spec)
        check_encoder(bundle.spec, encoder.identity)
        self.spec, self.network, self.device = bundle.spec, bundle.network, bundle.device
        self.encoder = encoder if bundle.tower is None else encoder.with_tower(bundle.tower)
        self._steps = sampling_steps(bundle.spec.architecture, steps)
        self._graphed = graphed(bundle.network, self._steps, bundle.device)
        self._known = dict(zip(bundle.spec.instructions, () if bundle.texts is None else bundle.texts, strict=True))
        super().__init__(describe(bundle.spec), n_action_steps)

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
            ConfigError: a device that is not there; see also the class.
            AssetError: the bundle or the encoder's weights cannot be fetched, or are a file to be named.
        """
        device = device or pick_device()
        require_device(device)
        bundle = load(local_bundle(source), device)
        return cls(bundle, make_encoder(bundle.spec, device, encoder_weights), steps, n_action_steps)

    def encode(self, observations: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Return what the network takes of a sound batch (B, ...), on its device: features of images, and the signals.

        All is float32. Features never leave the device.
        """
        arch = self.spec.architecture
        frames = [centre_crop(observations[camera]) for camera in arch.cameras]
        pixels = torch.cat([self.encoder.prepare(each) for each in frames])
        features = self.encoder.features(pixels)["grid" if arch.patches else "image"].float()
        signals = {name: torch.as_tensor(observations[name], device=self.device) for name in arch.proprio}
        return signals | dict(zip(arch.cameras, features.chunk(len(frames)), strict=True))

    def _stack(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(rows), 1)

    def _repeat(self, row: torch.Tensor, n: int) -> torch.Tensor:
        return row.repeat_interleave(n, 0)

    def _chunks(
        self, encoded: Mapping[str, torch.Tensor], texts: Sequence[Float[torch.Tensor, "1 D"]], noise: np.ndarray
    ) -> Float32[np.ndarray, "B H A"]:
        arch, text = self.spec.architecture, torch.cat(list(texts))
        start = torch.as_tensor(noise, device=self.device)
        images, proprio = ({name: encoded[name] for name in part} for part in (arch.cameras, arch.proprio))
        with torch.no_grad():
            if self._graphed:
                chunks = self._graphed({**encoded, NOISE: start, TEXT: text})
            else:
                condition = self.network.condition(images, text, proprio)
                chunks = self.network.actions(self.network.head.sample(condition, start, self._steps))
            sound = torch.stack([x.isfinite().all() for x in images.values()]).all()
            found = chunks.float().cpu().numpy()
        if not sound:
            raise DataError(
                f"{self.encoder.name} gives features that are not finite in half precision; use another one"
            )
        return found

    def _features_of(self, instruction: str) -> Float[torch.Tensor, "1 D"]:
        """Return the bundle's features of an instruction, or those of the text tower for one that it does not know."""
        known = self._known.get(instruction)
        features = torch.as_tensor(self.encoder.text([instruction])) if known is None else known[None]
        return features.to(self.device)

    def _seeded(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def _draw(self, generator: torch.Generator) -> Float[np.ndarray, "1 H A"]:
        return torch.randn(1, self.horizon, self.action_dim, generator=generator).numpy()  # the same on any device


def sampling_steps(arch: Architecture, asked: int | None) -> int:
    """Return the steps from noise to actions: as many as asked for, or the policy's own. Raises ConfigError."""
    steps = arch.sampling_steps if asked is None else asked
    if steps < 1 or (arch.head == "diffusion" and NOISE_LEVELS % steps):
        wanted = f"a divisor of {NOISE_LEVELS}, its levels of noise" if arch.head == "diffusion" else "1 or more"
        raise ConfigError(f"{steps} sampling steps: a policy of head {arch.head} takes {wanted}")
    return steps


def action_steps(arch: Architecture, asked: int | None, setting: str = "n_action_steps") -> int:
    """Return how many actions of a chunk are carried out: see `base.steps_carried_out`."""
    return steps_carried_out(arch.horizon, arch.n_obs_steps, arch.n_action_steps, asked, setting)
