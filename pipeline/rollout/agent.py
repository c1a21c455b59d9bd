"""What acts in an episode: the interface, and a policy behind its frozen encoder."""

import json
from collections import deque
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from pipeline.compute import worker_index
from pipeline.encode.clip import ClipEncoder, declared_identity, pick_device
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.errors import ConfigError, DataError
from pipeline.libero.depth import DEPTH_ID
from pipeline.libero.installation import picture_identity
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Observation, Simulator
from pipeline.libero.suites import Task
from pipeline.policy.bundle import PolicyBundle, PolicySpec, load, load_spec, weights_digest
from pipeline.policy.network import ACTION_DIM, Architecture


@runtime_checkable
class Agent(Protocol):
    """Maps an observation to an action chunk.

    Attributes:
        cameras: the images that it takes; () for an agent that is blind, for which nothing is drawn.
        n_action_steps: how many actions of a chunk are carried out before the next call of `act`.
    """

    cameras: tuple[str, ...]
    n_action_steps: int

    def reset(self, task: Task, seed: int) -> None:
        """Begin an episode. What the agent does from here on depends on task, seed and observations only."""

    def act(self, obs: Observation) -> np.ndarray:
        """Return the next actions, (h, 7) with h >= n_action_steps, in the environment's units."""


@runtime_checkable
class Privileged(Protocol):
    """What an agent has besides that is shown the simulator itself: no policy, but a test of the harness."""

    def begin(self, simulator: Simulator, episode: int) -> None:
        """Called after `reset`, before the first `act`. It may set another state, but not step."""


class PolicyAgent:
    """A policy bundle, and the encoder that its features came from.

    Args:
        sim: how the simulator draws now.
        steps: of sampling; None for the policy's own number.
        n_action_steps: actions of a chunk to carry out; None for the policy's own number.

    Raises:
        DataError: encoder, transform or pictures are not those that the policy was trained with.
        ConfigError: a number of action steps that the policy can't have.
    """

    def __init__(
        self,
        bundle: PolicyBundle,
        encoder: ClipEncoder,
        sim: Sim,
        steps: int | None = None,
        n_action_steps: int | None = None,
    ) -> None:
        check_pictures(bundle.spec, sim)
        check_encoder(bundle.spec, encoder.identity)
        arch = bundle.spec.architecture
        self.cameras = arch.cameras
        self.n_action_steps = action_steps(arch, n_action_steps)
        self._kind = "grid" if arch.patches else "image"
        # A policy with a history learnt from observations that are `arch.n_action_steps` control steps apart.
        self._stride = arch.n_action_steps // self.n_action_steps
        self._observations: deque[dict[str, np.ndarray]] = deque(maxlen=1 + (arch.n_obs_steps - 1) * self._stride)
        self._bundle = bundle
        self._encoder = encoder
        self._steps = steps or arch.sampling_steps
        self._words: dict[str, Float[torch.Tensor, "1 D"]] = {}
        self._task: Task | None = None
        self._generator = torch.Generator()

    @classmethod
    def load(
        cls,
        path: str | Path,
        encoder: EncoderParams,
        sim: Sim,
        device: str = "cpu",
        steps: int | None = None,
        n_action_steps: int | None = None,
    ) -> "PolicyAgent":
        """Read the bundle at `path` and make the encoder."""
        bundle = load(path, device)
        grid = GridParams(**bundle.spec.grid) if bundle.spec.grid else None
        agent = cls(bundle, ClipEncoder(encoder, device, grid), sim, steps, n_action_steps)
        if agent._bundle.tower is not None:
            agent._encoder.replace_tower(agent._bundle.tower)
        return agent

    def reset(self, task: Task, seed: int) -> None:
        self._task = task
        self._generator = torch.Generator().manual_seed(seed)
        self._observations.clear()
        if task.language not in self._words:
            words = self._encoder.text([task.language])
            self._words[task.language] = torch.as_tensor(words, device=self._bundle.device)

    def act(self, obs: Observation) -> Float[np.ndarray, "H 7"]:
        if self._task is None:
            raise RuntimeError("reset() comes before act()")
        network, device = self._bundle.network, self._bundle.device
        images, state = self._inputs(obs)
        noise = torch.randn(1, network.arch.horizon, ACTION_DIM, generator=self._generator)  # the same on any device
        with torch.no_grad():
            condition = network.condition(images, self._words[self._task.language], state)
            chunk = network.head.sample(condition, noise.to(device), self._steps)
            return network.actions(chunk)[0].float().cpu().numpy()

    def _inputs(self, obs: Observation) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Encode the images; return features and proprioception, with those of the observations before, as batch 1."""
        arch = self._bundle.spec.architecture
        frames = np.stack([obs.images[camera] for camera in self.cameras])
        features = self._encoder.forward(self._encoder.prepare(frames))[self._kind].astype(np.float32)
        state = {name: getattr(obs, name) for name in arch.proprio}
        self._observations.append(state | dict(zip(self.cameras, features, strict=True)))
        newest = len(self._observations) - 1
        past = [self._observations[max(0, newest - i * self._stride)] for i in reversed(range(arch.n_obs_steps))]
        seen = {name: np.stack([before[name] for before in past])[None] for name in past[0]}
        if arch.n_obs_steps == 1:
            seen = {name: x[:, 0] for name, x in seen.items()}
        tensors = {name: torch.as_tensor(x, device=self._bundle.device) for name, x in seen.items()}
        return {name: tensors[name] for name in self.cameras}, {name: tensors[name] for name in arch.proprio}


class RecordingAgent:
    """An agent that keeps the images of its observations."""

    def __init__(self, agent: Agent) -> None:
        self.cameras = agent.cameras
        self.n_action_steps = agent.n_action_steps
        self.seen: list[dict[str, np.ndarray]] = []
        self._agent = agent

    def reset(self, task: Task, seed: int) -> None:
        self._agent.reset(task, seed)

    def begin(self, simulator: Simulator, episode: int) -> None:
        if isinstance(self._agent, Privileged):
            self._agent.begin(simulator, episode)

    def act(self, obs: Observation) -> np.ndarray:
        self.seen.append(obs.images)
        return self._agent.act(obs)


def action_steps(arch: Architecture, asked: int | None) -> int:
    """Return how many actions of a chunk are carried out: as many as asked for, or the policy's own number.

    Raises:
        ConfigError: a number that the policy can't have.
    """
    steps = asked or arch.n_action_steps
    if steps > arch.horizon:
        raise ConfigError(
            f"eval_libero.n_action_steps is {steps}, but the policy gives chunks of {arch.horizon} actions"
        )
    if arch.n_obs_steps > 1 and arch.n_action_steps % steps:
        raise ConfigError(
            f"eval_libero.n_action_steps is {steps}, but the policy learnt from observations "
            f"{arch.n_action_steps} steps apart: give a divisor of that"
        )
    return steps


def own_device(device: str) -> str:
    """Return the torch device of this worker: for "cuda" it is one of the GPUs, in turn."""
    return pick_device(worker_index()) if device == "cuda" else device


def policy_identity(path: str | Path) -> dict[str, Any]:
    """Return what the results of the bundle at `path` depend on, and its weights' hash, as plain JSON values.

    Raises:
        DataError: there is no bundle.
    """
    tree = load_spec(path).to_json()
    del tree["provenance"]  # when and where it was trained moves no result
    return {"weights_sha256": weights_digest(path), **tree}


def check_settings(spec: PolicySpec, sim: Sim, encoder: EncoderParams) -> None:
    """Refuse settings that are not the policy's, by policy.json alone: all but the encoder's weights.

    Raises:
        DataError: names both sides and the remedy.
    """
    check_pictures(spec, sim)
    check_encoder(spec, declared_identity(encoder))


def check_pictures(spec: PolicySpec, sim: Sim) -> None:
    """Refuse a policy that would see other pictures than it learnt from.

    Raises:
        DataError: names both sides and the remedy.
    """
    if spec.transform != TRANSFORM_ID:
        raise DataError(
            f"the policy was trained on images of transform {spec.transform!r}; this code makes {TRANSFORM_ID!r}. "
            "Embed and train again: dvc repro train_flow"
        )
    if (drawn := spec.data.get("depth", DEPTH_ID)) != DEPTH_ID:
        raise DataError(
            f"the policy was trained on depth drawn as {drawn!r}; this code draws {DEPTH_ID!r}. "
            "Embed and train again: dvc repro train_flow"
        )
    drawn = picture_identity(sim)
    for name, trained in spec.data["sim"].items():
        if trained != (now := drawn.get(name)):
            what, remedy = f"sim.{name}", f"Set sim.{name}: {trained}"
            if name == "assets":
                what, remedy = "assets with digest", "Set sim.assets_path to a copy of the assets it was trained with"
            raise DataError(
                f"the policy was trained on pictures of {what} {trained!r}; the simulator is to draw {now!r}. "
                f"{remedy}, or make the demonstrations again and train on them: dvc repro train_flow"
            )


def check_encoder(spec: PolicySpec, identity: dict[str, Any]) -> None:
    """Refuse another encoder than the one whose features the policy was trained on. Raises DataError.

    Args:
        identity: ClipEncoder.identity, or a part of it.
    """
    mine, theirs = json.loads(json.dumps(identity)), spec.encoder
    differing = [k for k in sorted(mine) if mine[k] != theirs.get(k)]
    if differing:
        sides = "; ".join(f"{k}: {theirs.get(k)!r} in the policy, {mine[k]!r} in the settings" for k in differing)
        raise DataError(
            f"the policy was trained on another encoder's features ({sides}). "
            "Set embed.encoder as it was, or embed and train again: dvc repro train_flow"
        )
