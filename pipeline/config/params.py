"""What params.yaml holds: one section per stage or shared subject, each a dataclass of the room that owns it.

Machine facts (number of GPUs, processes) are not here: they are arguments of `accelerate launch` and
`configs/accelerate/*.yaml`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

from pipeline.compute import Compute
from pipeline.embed.settings import Embed
from pipeline.libero.settings import Data, Demos, Sim
from pipeline.policy.settings import PolicyParams
from pipeline.pretrain.settings import PretrainParams
from pipeline.ranges import Count, Seed
from pipeline.rollout.settings import EvalLibero
from pipeline.scenes.settings import ScenesParams
from pipeline.train.settings import TrainFlow


@dataclass(frozen=True)
class Comparison:
    """Policies to train and evaluate beside the default one, on the same store and init states; nothing by default.

    With policy `l1` and seed 0: runs/l1-0 and results/comparison/l1-0.
    """

    policies: dict[str, dict[str, Any]]  # by name, what differs: settings of `policy` and `train_flow`, by dotted name
    seeds: tuple[Seed, ...]  # of train_flow, for each of them
    by_steps: tuple[str, ...]  # those to evaluate with all of `sampling_steps`, too
    sampling_steps: tuple[Count, ...]
    against: tuple[str, ...]  # results that the others are compared with, such as l1-0: a page for each

    def runs(self) -> tuple[str, ...]:
        """Return the names of the policies trained, such as l1-0."""
        return tuple(f"{policy}-{seed}" for policy in self.policies for seed in self.seeds)

    def runs_by_steps(self) -> tuple[str, ...]:
        """Return the names of their evaluations by sampling steps, such as flow-0-steps-4."""
        return tuple(
            f"{policy}-{seed}-steps-{n}" for policy in self.by_steps for seed in self.seeds for n in self.sampling_steps
        )


@dataclass(frozen=True)
class Params:
    """params.yaml."""

    # Of the sections, too: no unknown key, no value of another type (true is no number), no infinity.
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    experiment: str
    data: Data
    sim: Sim
    demos: Demos
    embed: Embed
    policy: PolicyParams
    train_flow: TrainFlow
    eval_libero: EvalLibero
    comparison: Comparison
    scenes: ScenesParams
    pretrain_clip: PretrainParams
    compute: Compute
