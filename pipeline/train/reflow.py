"""Learning from a trained flow's own samples instead of demonstrated actions: reflow.

The teacher carries the training noise x_0 to x_1 for the same observation. Learning the straight path between such
pairs gives a straighter flow, which takes fewer steps (Liu et al., ICLR 2023: 2-rectified flow).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import DataError
from pipeline.policy.bundle import PolicyBundle, load
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.train.data import Batch
from pipeline.train.settings import TrainFlow

INPUTS = ("cameras", "patches", "proprio", "n_obs_steps")


@dataclass(frozen=True)
class Teacher:
    """A trained flow that gives the actions to learn.

    Attributes:
        steps: of its sampling; None is its own number.
    """

    bundle: PolicyBundle
    steps: int | None

    @torch.no_grad()
    def actions(self, batch: Batch, noise: Float[Tensor, "B H A"]) -> Float[Tensor, "B H A"]:
        """Return what the teacher makes of `noise`, unclipped, in the environment's units."""
        return self.bundle.network.propose(batch.images, batch.text, batch.proprio, noise, self.steps)

    def start(self, student: PolicyNetwork) -> bool:
        """Give the student the teacher's weights, if it is built alike; return whether it is."""
        theirs, ours = (_built(arch) for arch in (self.bundle.spec.architecture, student.arch))
        if theirs == ours:
            student.load_state_dict(self.bundle.network.state_dict())
        return theirs == ours


def load_teacher(
    cfg: TrainFlow, arch: Architecture, features: Mapping[str, Any], out: Path, device: torch.device
) -> Teacher | None:
    """Return the teacher that `train_flow.teacher` names; None without one.

    Args:
        arch: of the student.
        features: identity of the store: its encoder and transform.
        out: where the student goes.

    Raises:
        DataError: there is no such policy, it takes other inputs or gives other actions, or the student would
            replace it, or it learnt from tasks that are held out.
    """
    if cfg.teacher is None:
        return None
    path = Path(cfg.teacher)
    if path.resolve().is_relative_to((out / "policy").resolve()):
        raise DataError(
            f"train_flow.teacher {path}: training is about to replace it. Copy it to runs/teacher/policy, say"
        )
    bundle = load(path, device)
    theirs = bundle.spec.architecture
    sides = {
        "head": (theirs.head, "flow"),
        "encoder": (bundle.spec.encoder, features["encoder"]),
        "tune": (bundle.spec.tune, "none"),
        "transform": (bundle.spec.transform, features["transform"]),
        "grid": (bundle.spec.grid, features.get("grid") if arch.patches else None),
        "horizon": (theirs.horizon, arch.horizon),
        **{name: (getattr(theirs, name), getattr(arch, name)) for name in INPUTS},
    }
    if arch.n_obs_steps > 1:  # observations are so many steps apart
        sides["n_action_steps"] = (theirs.n_action_steps, arch.n_action_steps)
    for suite, ids in cfg.held_out_tasks.items():
        learnt = bundle.spec.data["tasks"].get(suite, ())
        if known := sorted({*ids} if learnt is None else {*ids} & {*learnt}):
            raise DataError(
                f"train_flow.teacher {path}: it learnt from task {known} of {suite}, which train_flow.held_out_tasks "
                "keeps from the student. Train a teacher without them"
            )
    for name, (has, needed) in sides.items():
        if has != needed:
            raise DataError(
                f"train_flow.teacher {path}: its {name} is {has}, and {needed} is needed. Name another policy"
            )
    for parameter in bundle.network.parameters():
        parameter.requires_grad_(False)
    return Teacher(bundle, cfg.teacher_steps)


def _built(arch: Architecture) -> dict[str, Any]:
    """What decides names and shapes of the weights, and what they mean."""
    of_use = ("n_action_steps", "sampling_steps", "feature_noise", "augmented_views")
    return {k: v for k, v in arch.to_json().items() if k not in of_use}
