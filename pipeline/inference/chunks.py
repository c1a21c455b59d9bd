"""A policy's actions over a recording: one chunk, or all that it would carry out."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from pipeline.inference.policy import Policy
from pipeline.inference.recordings import Recording


def chunk_at(
    policy: Policy, recording: Recording, step: int, instruction: str, samples: int, seed: int
) -> Float32[np.ndarray, "n H A"]:
    """Return `samples` action chunks for the observation of a step, and those before it that the policy sees.

    Raises:
        DataError: see `Policy.sample`.
    """
    policy.reset(seed)
    before = [
        step - i * policy.n_action_steps for i in range(1, policy.n_obs_steps) if step - i * policy.n_action_steps >= 0
    ]
    for earlier in reversed(before):
        policy.act(recording.at(earlier), instruction)
    return policy.sample(recording.at(step), instruction, samples, seed)


def carried_out(
    policy: Policy, recording: Recording, instruction: str, samples: int, seed: int
) -> Float32[np.ndarray, "n T A"]:
    """Return what the policy would do at every step, were the observations those of the recording whatever it does.

    Every `n_action_steps` it gives a new chunk, of which as many actions are taken. Each sample is an episode with
    a seed of its own, from `seed` on.
    """
    episodes = []
    for episode in range(samples):
        policy.reset(seed + episode)
        taken = [
            policy.act(recording.at(step), instruction)[: policy.n_action_steps]
            for step in range(0, len(recording), policy.n_action_steps)
        ]
        episodes.append(np.concatenate(taken)[: len(recording)])
    return np.stack(episodes)


def following(recording: Recording, step: int, count: int) -> Float[np.ndarray, "H A"] | None:
    """Return the `count` true actions after the observation of a step, NaN past the end; None if none are known."""
    if recording.actions is None:
        return None
    rows = np.full((count, recording.actions.shape[1]), np.nan)
    known = recording.actions[step : step + count]
    rows[: len(known)] = known
    return rows


def table(rows: Float[np.ndarray, "H A"], names: Sequence[str], corner: str = "step") -> str:
    """Return actions as lines of text."""
    lines = ["".join([f"{corner:>6}", *(f" {name:>8}" for name in names)])]
    lines += ["".join([f"{i:>6}", *(f" {value:>8.4f}" for value in row)]) for i, row in enumerate(rows)]
    return "\n".join(lines)


def error_table(made: Float[np.ndarray, "n H A"], true: Float[np.ndarray, "H A"], names: Sequence[str]) -> str | None:
    """Return the mean absolute error of each component over samples and steps; None where no action is known."""
    known = np.isfinite(true).all(axis=1)
    if not known.any():
        return None
    error = np.abs(made[:, known] - true[known]).mean(axis=(0, 1))
    line = "".join([f"{'MAE':>6}", *(f" {value:>8.4f}" for value in error)])
    return f"{line}   mean {error.mean():.4f}, over {known.sum()} steps and {len(made)} samples"
