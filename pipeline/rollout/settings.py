"""Settings of the evaluation, and the conditions that it knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.ranges import Count, Natural, Positive, Seed

AGENTS = ("policy", "noop", "random", "replay", "expert")
POLICY = Path("runs/flow/policy")  # where the pipeline leaves its bundle
PLAIN = "plain"
CONDITIONS = {
    "blank_cameras": None,
    "other_episode": None,
    "other_instruction": None,
    "paraphrased_instruction": None,
    "latency": "seconds from an observation to its first action, in which the robot waits",
    "latency_asynchronous": "seconds likewise, in which it goes on with the chunk before",
    "light": "a factor on all lights",
    "moved_camera": "metres that the agentview camera stands elsewhere, in a direction of each episode's own",
    "displaced": "metres that objects on the table may lie elsewhere, in x and y",
}
"""What evaluation can change beside the plain one, to see what the policy uses, and what the number to it means.

Several at once are joined by +, such as displaced+blank_cameras. Of several numbers each is a condition: latency=0.1.
"""
Amount = float | tuple[float, ...] | None


def condition_parts(condition: str) -> tuple[str, ...]:
    """Return what `condition` changes, of CONDITIONS: displaced+blank_cameras=0.08 is two things."""
    return tuple(condition.partition("=")[0].split("+"))


def amount_text(amount: float) -> str:
    """Return a number in six digits, or as many as it has."""
    short = f"{amount:g}"
    return short if float(short) == amount else repr(amount)


def each_condition(asked: Mapping[str, Amount]) -> dict[str, float | None]:
    """Return a condition for each number, by the name that it has in results."""
    found: dict[str, float | None] = {}
    for name, amount in asked.items():
        if isinstance(amount, tuple):
            found |= {f"{name}={amount_text(one)}": one for one in amount}
        else:
            found[name] = amount
    return found


@dataclass(frozen=True)
class EvalLibero:
    """Rollouts in the simulator, by the protocol of OpenVLA and openpi."""

    episodes: Count  # per task
    first_init_state: Natural  # row of init states for episode 0
    max_steps: Count | None  # control steps after settling; null is the suite's usual limit
    timeout_s: Positive  # wall-clock limit of one episode
    videos_per_task: Natural
    sampling_steps: Count | None  # null: the policy's own
    n_action_steps: Count | None  # actions carried out of each chunk; null: the policy's own number
    conditions: dict[str, Amount]  # of CONDITIONS: each evaluated beside the plain one, on the same init states
    condition_episodes: Count | None  # per task under each of them, the first ones; null: all
    seed: Seed  # of the flow's noise, one generator per episode
