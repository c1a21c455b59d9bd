"""What acts in an episode: the interface, and a policy given what the simulator shows."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from pipeline.compute import worker_index
from pipeline.encode.clip import ClipEncoder, declared_identity, pick_device
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.errors import DataError
from pipeline.inference import policy
from pipeline.inference.encoder import check_encoder, check_transform
from pipeline.inference.policy import Policy
from pipeline.libero.installation import picture_identity
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Observation, Simulator
from pipeline.libero.suites import Task
from pipeline.policy.bundle import PolicyBundle, PolicySpec, load, load_spec, weights_digest
from pipeline.policy.network import Architecture

USUAL_PICTURES = {"image_size": 256, "render": "full"}  # that openpi's, OpenVLA's and LeRobot's policies learnt from
log = logging.getLogger(__name__)


class Unavailable(Exception):
    """What computes the actions cannot do so now: it is busy, out of memory or restarted. No fault of the policy."""


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
        """Return the next actions, (h, 7) with h >= n_action_steps, in the environment's units.

        Raises:
            Unavailable: the episode is run once more, and then an `error`. Whatever else is raised is a failure.
        """


@runtime_checkable
class Privileged(Protocol):
    """What an agent has besides that is shown the simulator itself: no policy, but a test of the harness."""

    def begin(self, simulator: Simulator, episode: int) -> None:
        """Called after `reset`, before the first `act`. It may set another state, but not step."""


class PolicyAgent:
    """A policy in the simulator: `inference.policy.Policy`, given the simulator's observations.

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
        arch = bundle.spec.architecture
        self.cameras = arch.cameras
        self.n_action_steps = action_steps(arch, n_action_steps)
        self.policy = Policy(bundle, encoder, steps, self.n_action_steps)
        self._task: Task | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        encoder: EncoderParams,
        sim: Sim,
        device: str = "cpu",
        steps: int | None = None,
        n_action_steps: int | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> "PolicyAgent":
        """Read the bundle at `path` and make the encoder.

        Args:
            identity: what `policy_identity` said of the bundle; None: is not looked at.

        Raises:
            DataError: see the class; or the bundle is another one by now.
        """
        bundle = load(path, device)
        if identity is not None and identity != identity_of(bundle.spec, bundle.digest):
            raise DataError(f"{path}: was replaced since the evaluation began. Start the same command again")
        grid = GridParams(**bundle.spec.grid) if bundle.spec.grid else None
        return cls(bundle, ClipEncoder(encoder, device, grid), sim, steps, n_action_steps)

    def reset(self, task: Task, seed: int) -> None:
        self._task = task
        self.policy.reset(seed)

    def act(self, obs: Observation) -> Float[np.ndarray, "H 7"]:
        if self._task is None:
            raise RuntimeError("reset() comes before act()")
        inputs = {name: obs.images[name] for name in self.cameras}
        inputs |= {name: getattr(obs, name) for name in self.policy.spec.architecture.proprio}
        # Sound, or the simulator's fault, which the episode tells of: not the caller's, which `Policy.act` would say.
        return self.policy.advance({name: x[None] for name, x in inputs.items()}, [self._task.language])[0]


class RecordingAgent:
    """An agent that keeps its observations."""

    def __init__(self, agent: Agent) -> None:
        self.cameras = agent.cameras
        self.n_action_steps = agent.n_action_steps
        self.seen: list[Observation] = []
        self._agent = agent

    def reset(self, task: Task, seed: int) -> None:
        self._agent.reset(task, seed)

    def begin(self, simulator: Simulator, episode: int) -> None:
        if isinstance(self._agent, Privileged):
            self._agent.begin(simulator, episode)

    def act(self, obs: Observation) -> np.ndarray:
        self.seen.append(obs)
        return self._agent.act(obs)


def action_steps(arch: Architecture, asked: int | None) -> int:
    """Return how many actions of a chunk are carried out: see `inference.policy.action_steps`."""
    return policy.action_steps(arch, asked, "eval_libero.n_action_steps")


def own_device(device: str) -> str:
    """Return the torch device of this worker: for "cuda" it is one of the GPUs, in turn."""
    return pick_device(worker_index()) if device == "cuda" else device


def policy_identity(path: str | Path) -> dict[str, Any]:
    """Return what the results of the bundle at `path` depend on, and its weights' hash, as plain JSON values.

    Raises:
        DataError: there is no bundle.
    """
    return identity_of(load_spec(path), weights_digest(path))


def identity_of(spec: PolicySpec, digest: str | None) -> dict[str, Any]:
    """Return what `policy_identity` does, of a bundle that is loaded."""
    tree = spec.to_json()
    del tree["provenance"]  # when and where it was trained moves no result
    return {"weights_sha256": digest, **tree}


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
    check_transform(spec)
    if spec.data["sim"] is None:
        raise DataError(
            f"the policy was trained on data of your own ({', '.join(spec.data['stores'])}), which LIBERO's simulator "
            "cannot show. Run it on its robot"
        )
    check_drawn(spec.data["sim"], sim)


def warn_of_pictures(sim: Sim) -> None:
    """Log it if the simulator draws other pictures than most policies of others learnt from."""
    if other := {name: value for name, value in USUAL_PICTURES.items() if getattr(sim, name) != value}:
        log.warning(
            "the policy gets pictures of sim.%s; if it learnt from LIBERO's own, its rate is of other pictures. Add %s",
            ", sim.".join(f"{name} {getattr(sim, name)}" for name in other),
            " ".join(f"--set sim.{name}={value}" for name, value in other.items()),
        )


def check_drawn(learnt: Mapping[str, Any], sim: Sim) -> None:
    """Refuse pictures drawn otherwise than those that a policy learnt from: what `picture_identity` said of them.

    Raises:
        DataError: names both sides and the remedy.
    """
    drawn = picture_identity(sim)
    for name, trained in learnt.items():
        if trained != (now := drawn.get(name)):
            what, remedy = f"sim.{name}", f"Set sim.{name}: {trained}"
            if name == "assets":
                what, remedy = "assets with digest", "Set sim.assets_path to a copy of the assets it was trained with"
            raise DataError(
                f"the policy was trained on pictures of {what} {trained!r}; the simulator is to draw {now!r}. "
                f"{remedy}, or make the demonstrations again and train on them: dvc repro train_flow"
            )
