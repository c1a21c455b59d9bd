"""What to evaluate: the agent that is named, who it is, and how it runs; all mistakes that can be told before."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.encode.clip import require_device
from pipeline.encode.settings import EncoderParams
from pipeline.errors import ConfigError, did_you_mean
from pipeline.libero.settings import Sim
from pipeline.libero.suites import Task
from pipeline.policy.bundle import load_spec
from pipeline.provenance import without_credentials
from pipeline.rollout.agent import Agent, PolicyAgent, action_steps, check_settings, own_device, policy_identity
from pipeline.rollout.baselines import ExpertAgent, NoopAgent, RandomAgent, ReplayAgent, replay_identity, replayable
from pipeline.rollout.conditions import ASYNCHRONOUS, OF_THE_AGENT
from pipeline.rollout.engine import Evaluation
from pipeline.rollout.episode import EpisodeSettings
from pipeline.rollout.latency import check_latency
from pipeline.rollout.metadata import is_ours
from pipeline.rollout.named import is_named, plan_named
from pipeline.rollout.remote import is_remote, plan_remote
from pipeline.rollout.settings import AGENTS, POLICY, Amount, EvalLibero, condition_parts, each_condition

log = logging.getLogger(__name__)


def plan(
    agent: str,
    tasks: tuple[Task, ...],
    sim: Sim,
    cfg: EvalLibero,
    *,
    policy: Path | None = None,
    agent_id: str | None = None,
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
        agent_id: which policy a server serves, where its metadata does not say it.
        encoder: which the policy's features are to come from.
        demos: what "replay" replays.
        n_action_steps: actions of a chunk that a baseline carries out.
        device: of encoder and policy: cpu, cuda (workers are spread over the GPUs), cuda:1...; None: cuda if there is.
        threads: of torch, in each worker.

    Raises:
        DataError: a policy or demonstrations that are not there, or do not fit the settings.
        ConfigError: no such agent, an argument that it does not take, a device that is not there, or action steps that
            the policy can't have.
        PipelineError: no server at the address.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    require_device(device)
    check_arguments(agent, cfg, policy, agent_id)
    first, episodes, resumable = cfg.first_init_state, cfg.episodes, True
    make_agent: Callable[[], Agent]
    if agent == "policy":
        make_agent, identity = plan_policy(policy or POLICY, sim, cfg, encoder, device)
    elif is_remote(agent):
        make_agent, identity = plan_remote(agent, sim, cfg.n_action_steps, cfg.timeout_s)
        identity |= {} if agent_id is None else {"id": agent_id}
        resumable = identifies(identity)
    elif is_named(agent):
        make_agent, identity = plan_named(agent, policy, sim)
    else:
        make_agent, identity = plan_baseline(agent, tasks, demos, n_action_steps)
        if agent == "replay":
            first, episodes = 0, min(episodes, replayable(demos, tasks))
    for name, amount in conditions_for(agent, cfg.conditions).items():
        if (
            ASYNCHRONOUS in condition_parts(name) and "n_action_steps" in identity
        ):  # the maker of a class decides itself
            check_latency(amount or 0.0, identity["n_action_steps"], horizon(agent, policy, identity))
    return Evaluation(
        make_agent=make_agent,
        identity={"name": without_credentials(agent), **identity},
        sim=sim,
        tasks=tasks,
        episodes=episodes,
        settings=EpisodeSettings(first, cfg.max_steps, cfg.timeout_s, cfg.seed, sim.seed),
        videos_per_task=cfg.videos_per_task,
        threads=threads,
        device=device if agent == "policy" or is_named(agent) else "cpu",
        resumable=resumable,
    )


def horizon(agent: str, policy: Path | None, identity: Mapping[str, Any]) -> int | None:
    """Return how many actions a chunk has, where that is known before the first one."""
    if agent == "policy":
        return load_spec(policy or POLICY).architecture.horizon
    if is_remote(agent) and is_ours(identity["metadata"]):
        return identity["metadata"]["outputs"]["actions"]["shape"][0]
    return identity["n_action_steps"] if agent in AGENTS else None


def check_arguments(agent: str, cfg: EvalLibero, policy: Path | None, agent_id: str | None) -> None:
    """Raise ConfigError for an agent that is not known, and for an argument or setting that it would ignore."""
    if agent not in AGENTS and not is_remote(agent) and not is_named(agent):
        raise ConfigError(
            f"--agent {agent}: not known.{did_you_mean(agent, AGENTS)} Others: ws://host:port, package.module:Class"
        )
    shown = without_credentials(agent)
    if policy is not None and agent != "policy" and not is_named(agent):
        raise ConfigError(f"--policy {policy}: --agent {shown} takes none. Leave one of the two out")
    if agent_id is not None and (not is_remote(agent) or not agent_id.strip()):
        raise ConfigError(
            f"--agent-id {agent_id!r}: names the policy behind a server, ws://host:port, and --agent is {shown}. Leave "
            "it out, or give a text that is not empty"
        )
    if is_remote(agent) or is_named(agent):
        refuse_settings(cfg, agent, "sampling_steps", *(["n_action_steps"] if is_named(agent) else []))


def plan_policy(
    policy: Path, sim: Sim, cfg: EvalLibero, encoder: EncoderParams, device: str
) -> tuple[Callable[[], Agent], dict[str, Any]]:
    """Return what makes the agent of a bundle, and its identity. Raises as `plan`."""
    spec = load_spec(policy)
    if encoder.precision == "auto":  # what it came to where the features were made, not what it would be here
        encoder = replace(encoder, precision=spec.encoder["precision"])
    check_settings(spec, sim, encoder)  # before the weights are read
    steps = action_steps(spec.architecture, cfg.n_action_steps)
    identity = policy_identity(policy)
    made = partial(load_policy, policy.resolve(), encoder, sim, device, cfg.sampling_steps, steps, identity)
    return made, {
        "device": device,
        **identity,
        "n_action_steps": steps,
        "sampling_steps": cfg.sampling_steps or spec.architecture.sampling_steps,
    }


def plan_baseline(
    agent: str, tasks: tuple[Task, ...], demos: Path, n_action_steps: int
) -> tuple[Callable[[], Agent], dict[str, Any]]:
    """Return what makes a baseline, and its identity. Raises as `plan`."""
    if agent == "expert":
        return ExpertAgent, {"n_action_steps": ExpertAgent.n_action_steps}
    identity: dict[str, Any] = {"n_action_steps": n_action_steps}
    if agent == "replay":
        replayed = {"demonstrations": replay_identity(demos, tasks)}
        return partial(ReplayAgent, demos.resolve(), n_action_steps), identity | replayed
    return partial(NoopAgent if agent == "noop" else RandomAgent, n_action_steps), identity


def identifies(identity: Mapping[str, Any]) -> bool:
    """Return whether a server's identity says which policy it serves; warn if it does not."""
    if identity["metadata"] or "id" in identity:
        return True
    log.warning(
        "%s: the server's metadata is empty, so nothing tells its policy from another. Name it: --agent-id TEXT. "
        "Without that an evaluation that is interrupted cannot be resumed",
        identity["url"],
    )
    return False


def refuse_settings(cfg: EvalLibero, agent: str, *names: str) -> None:
    """Raise ConfigError for a setting that is asked for and can't be had of another's policy."""
    for name in names:
        if getattr(cfg, name) is not None:
            raise ConfigError(
                f"eval_libero.{name} is {getattr(cfg, name)}, which {without_credentials(agent)} decides itself. Set "
                "it to null"
            )


def load_policy(
    path: Path,
    encoder: EncoderParams,
    sim: Sim,
    device: str,
    sampling_steps: int | None,
    n_action_steps: int,
    identity: Mapping[str, Any] | None = None,
) -> Agent:
    """Return the agent of a bundle, in a worker: of the one that the evaluation was planned with."""
    return PolicyAgent.load(path, encoder, sim, own_device(device), sampling_steps, n_action_steps, identity)


def conditions_for(agent: str, asked: Mapping[str, Amount]) -> dict[str, float | None]:
    """Return the conditions that make sense: the expert needs no camera, a replay has a scene of its own."""
    if agent == "replay":
        return {}
    return {
        name: amount
        for name, amount in each_condition(asked).items()
        if agent != "expert" or not set(condition_parts(name)) & set(OF_THE_AGENT)
    }
