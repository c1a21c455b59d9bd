"""What to evaluate: the agent that is named, who it is, and how it runs; all mistakes that can be told before."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.encode.settings import EncoderParams
from pipeline.errors import ConfigError, did_you_mean
from pipeline.libero.settings import Sim
from pipeline.libero.suites import Task
from pipeline.policy.bundle import load_spec
from pipeline.rollout.agent import Agent, PolicyAgent, action_steps, check_settings, own_device, policy_identity
from pipeline.rollout.baselines import ExpertAgent, NoopAgent, RandomAgent, ReplayAgent, replay_identity, replayable
from pipeline.rollout.conditions import OF_THE_AGENT
from pipeline.rollout.engine import Evaluation
from pipeline.rollout.episode import EpisodeSettings
from pipeline.rollout.named import is_named, plan_named
from pipeline.rollout.remote import is_remote, plan_remote
from pipeline.rollout.settings import AGENTS, POLICY, EvalLibero, condition_parts


def plan(
    agent: str,
    tasks: tuple[Task, ...],
    sim: Sim,
    cfg: EvalLibero,
    *,
    policy: Path | None = None,
    encoder: EncoderParams,
    demos: Path,
    n_action_steps: int,
    device: str | None = None,
    threads: int = 1,
) -> Evaluation:
    """Return the evaluation of an agent on these tasks.

    Args:
        agent: one of AGENTS, the address of a server (ws://host:port), or a class (package.module:Class).
        policy: bundle of the agent "policy" (None: the pipeline's own), or what a class is made with.
        encoder: which the policy's features are to come from.
        demos: what "replay" replays.
        n_action_steps: actions of a chunk that a baseline carries out.
        device: of encoder and policy: cpu, cuda (workers are spread over the GPUs), cuda:1...; None: cuda if there is.
        threads: of torch, in each worker.

    Raises:
        DataError: a policy or demonstrations that are not there, or do not fit the settings.
        ConfigError: no such agent, a device that is not there, or action steps that the policy can't have.
        PipelineError: no server at the address.
    """
    device = checked_device(device)
    first, episodes = cfg.first_init_state, cfg.episodes
    make_agent: Callable[[], Agent]
    identity: dict[str, Any] = {"name": agent, "n_action_steps": n_action_steps}
    if agent == "policy":
        policy = policy or POLICY
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
    elif is_remote(agent):
        refuse_settings(cfg, agent, "sampling_steps")
        make_agent, more = plan_remote(agent, sim, cfg.n_action_steps, cfg.timeout_s)
        identity |= more
    elif is_named(agent):
        refuse_settings(cfg, agent, "sampling_steps", "n_action_steps")
        make_agent, more = plan_named(agent, policy)
        identity = {"name": agent, **more}
    elif agent not in AGENTS:
        raise ConfigError(
            f"--agent {agent}: not known.{did_you_mean(agent, AGENTS)} Others: ws://host:port, package.module:Class"
        )
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
        device=device if agent == "policy" or is_named(agent) else "cpu",
    )


def refuse_settings(cfg: EvalLibero, agent: str, *names: str) -> None:
    """Raise ConfigError for a setting that is asked for and can't be had of another's policy."""
    for name in names:
        if getattr(cfg, name) is not None:
            raise ConfigError(
                f"eval_libero.{name} is {getattr(cfg, name)}, which {agent} decides itself. Set it to null"
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
