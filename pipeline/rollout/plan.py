"""What to evaluate: the agent that is named, who it is, and how it runs; all mistakes that can be told before."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.encode.settings import EncoderParams
from pipeline.errors import ConfigError
from pipeline.libero.settings import Sim
from pipeline.libero.suites import Task
from pipeline.policy.bundle import load_spec
from pipeline.rollout.agent import Agent, PolicyAgent, action_steps, check_settings, own_device, policy_identity
from pipeline.rollout.baselines import ExpertAgent, NoopAgent, RandomAgent, ReplayAgent, replay_identity, replayable
from pipeline.rollout.conditions import OF_THE_AGENT
from pipeline.rollout.engine import Evaluation
from pipeline.rollout.episode import EpisodeSettings
from pipeline.rollout.settings import EvalLibero, condition_parts


def plan(
    agent: str,
    tasks: tuple[Task, ...],
    sim: Sim,
    cfg: EvalLibero,
    *,
    policy: Path,
    encoder: EncoderParams,
    demos: Path,
    n_action_steps: int,
    device: str | None = None,
    threads: int = 1,
) -> Evaluation:
    """Return the evaluation of one of AGENTS on these tasks.

    Args:
        policy: bundle of the agent "policy".
        encoder: which the policy's features are to come from.
        demos: what "replay" replays.
        n_action_steps: actions of a chunk that a baseline carries out.
        device: of encoder and policy: cpu, cuda (workers are spread over the GPUs), cuda:1...; None: cuda if there is.
        threads: of torch, in each worker.

    Raises:
        DataError: a policy or demonstrations that are not there, or do not fit the settings.
        ConfigError: a device that is not there, or action steps that the policy can't have.
    """
    device = checked_device(device)
    first, episodes = cfg.first_init_state, cfg.episodes
    make_agent: Callable[[], Agent]
    identity: dict[str, Any] = {"name": agent, "n_action_steps": n_action_steps}
    if agent == "policy":
        spec = load_spec(policy)
        if encoder.precision == "auto":  # what it came to where the features were made, not what it would be here
            encoder = replace(encoder, precision=spec.encoder["precision"])
        check_settings(spec, sim, encoder)
        steps = action_steps(spec.architecture, cfg.n_action_steps)
        make_agent = partial(load_policy, policy.resolve(), encoder, sim, device, cfg.sampling_steps, steps)
        identity |= {"device": device, **policy_identity(policy), "n_action_steps": steps}
        identity["sampling_steps"] = cfg.sampling_steps or spec.architecture.sampling_steps
    elif agent == "replay":
        make_agent = partial(ReplayAgent, demos.resolve(), n_action_steps)
        identity["demonstrations"] = replay_identity(demos, tasks)
        first, episodes = 0, min(episodes, replayable(demos, tasks))
    elif agent == "expert":
        make_agent = ExpertAgent
        identity["n_action_steps"] = ExpertAgent.n_action_steps
    else:
        make_agent = partial(NoopAgent if agent == "noop" else RandomAgent, n_action_steps)
    return Evaluation(
        make_agent=make_agent,
        identity=identity,
        sim=sim,
        tasks=tasks,
        episodes=episodes,
        settings=EpisodeSettings(first, cfg.max_steps, cfg.timeout_s, cfg.seed, sim.seed),
        videos_per_task=cfg.videos_per_task,
        threads=threads,
        device=device if agent == "policy" else "cpu",
    )


def load_policy(
    path: Path, encoder: EncoderParams, sim: Sim, device: str, sampling_steps: int | None, n_action_steps: int
) -> Agent:
    """Return the agent of a bundle, in a worker."""
    return PolicyAgent.load(path, encoder, sim, own_device(device), sampling_steps, n_action_steps)


def conditions_for(agent: str, asked: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the conditions that make sense: the expert needs no camera, a replay has a scene of its own."""
    if agent == "replay":
        return {}
    return {
        name: amount
        for name, amount in asked.items()
        if agent != "expert" or not set(condition_parts(name)) & set(OF_THE_AGENT)
    }


def checked_device(asked: str | None) -> str:
    """Return the torch device to use. Raises ConfigError for one that is not there."""
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"--device {asked}: not to be used here ({error}). Use cpu, or leave it out") from None
    return asked
