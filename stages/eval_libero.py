"""Stage three: roll the policy out in the LIBERO simulator and count.

    python -m stages.eval_libero                                  # runs/flow/policy, as params.yaml says
    python -m stages.eval_libero --agent random                   # the floor; noop is the other one
    python -m stages.eval_libero --agent replay                   # demonstrations again: what a sound harness gives
    python -m stages.eval_libero --agent expert                   # the scripted expert
    python -m stages.eval_libero --policy runs/mine/policy --out results/mine
    python -m stages.eval_libero --picture docs/rollout.png       # an episode as a film strip

Writes episodes.jsonl (a line per episode), eval.json (rates with intervals, the protocol in every detail) and videos/
into results/flow, and below conditions/ the episodes under what eval_libero.conditions names. Stopped at any time and
started again it goes on with the episodes that are left, which it keeps in .scratch/eval/, and ends in the same result.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from pipeline.config import Params
from pipeline.encode.clip import pick_device
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.encode.settings import EncoderParams
from pipeline.errors import ConfigError, DataError, SimulatorError
from pipeline.files import publish_directory, write_atomic
from pipeline.libero.settings import Sim
from pipeline.libero.suites import tasks
from pipeline.policy.bundle import load_spec
from pipeline.provenance import provenance, versions
from pipeline.rollout.agent import Agent, PolicyAgent, action_steps, check_spec, policy_identity
from pipeline.rollout.baselines import ExpertAgent, NoopAgent, RandomAgent, ReplayAgent, replay_identity, replayable
from pipeline.rollout.conditions import OF_THE_AGENT, baseline
from pipeline.rollout.engine import Evaluation, evaluate, simulators
from pipeline.rollout.episode import EpisodeSettings
from pipeline.rollout.figures import METRICS, TASKS, write_figures
from pipeline.rollout.metrics import headline, held_out, paired, rates, summary, timings
from pipeline.rollout.results import EpisodeRecord, write_records
from pipeline.rollout.settings import EvalLibero, condition_parts
from pipeline.rollout.strip import picture
from pipeline.rollout.video import png
from stages import cli

log = logging.getLogger(__name__)
Other = tuple[str, list[EpisodeRecord]]  # a condition, and its episodes
PUBLISHED = {"eval.json", METRICS, TASKS, "episodes.jsonl", "videos", "conditions"}
AGENTS = ("policy", "noop", "random", "replay", "expert")


def main(argv: list[str] | None = None) -> None:
    """Evaluate by params.yaml and publish the results."""
    parser = cli.parser(__doc__)
    parser.add_argument("--agent", choices=AGENTS, default="policy", help="default: %(default)s")
    parser.add_argument("--policy", default="runs/flow/policy", help="bundle to evaluate (default: %(default)s)")
    parser.add_argument("--demos", default="data/demos", help="what replay replays (default: %(default)s)")
    parser.add_argument("--out", help="directory to write (default: results/flow, or results/<agent> for a baseline)")
    parser.add_argument("--device", help="of encoder and policy: cpu, cuda (default: cuda if there is one)")
    parser.add_argument("--scratch", default=".scratch/eval", help="unfinished work (default: %(default)s)")
    parser.add_argument("--picture", help="draw one episode's film strip into this PNG, and stop")
    parser.add_argument("--episode", type=int, default=0, help="for --picture, of the first task (default: 0)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    out = Path(args.out or f"results/{'flow' if args.agent == 'policy' else args.agent}")
    refuse_strange(out)
    evaluation = plan(params, args.agent, Path(args.policy), Path(args.demos), checked_device(args.device))
    work = Path(args.scratch).resolve() / evaluation.fingerprint()
    if args.picture:
        if args.agent == "replay":
            parser.error("--picture: a replay begins where its demonstration did, and pictures in an init state")
        draw(evaluation, args.episode, Path(args.picture))
        return
    started, before = perf_counter(), resumed(work)
    records = evaluate(evaluation, params.compute, work)
    refuse_all_errors(records, work)
    others: dict[Path, Other] = {}
    asked = conditions_for(args.agent, params.eval_libero.conditions)
    for name, amount in asked.items():
        log.info("condition %s", name)
        other = replace(
            evaluation,
            episodes=min(evaluation.episodes, params.eval_libero.condition_episodes or evaluation.episodes),
            settings=replace(evaluation.settings, condition=name, amount=amount),
        )
        place = work.with_name(other.fingerprint())
        others[place] = name, evaluate(other, params.compute, place)
    report = {
        **summary(records),
        "conditions": compared(records, dict(others.values()), asked),
        "held_out": held_out(records, load_spec(Path(args.policy)).data["tasks"]) if args.agent == "policy" else None,
        "init_states_demonstrated": None if args.agent == "replay" else demonstrated(params, records),
        "protocol": protocol(evaluation, work),
        "versions": versions(),
        "timings": {
            "wall_s": round(perf_counter() - started, 1),
            "episodes_resumed": before,
            **timings(records),
        },
        "provenance": provenance(),
    }
    publish(records, report, work, out, others)
    print(headline(report))
    print(f"episodes, protocol and videos: {out}")


def plan(params: Params, agent: str, policy: Path, demos: Path, device: str) -> Evaluation:
    """Return what params.yaml asks for. Raises DataError for a policy or demonstrations that do not fit it."""
    cfg, execute = params.eval_libero, params.policy.execute
    chosen = tuple(t for suite in params.data.suites for t in tasks(suite, params.data.tasks[suite]))
    first, episodes = cfg.first_init_state, cfg.episodes
    make_agent: Callable[[], Agent]
    identity: dict[str, Any] = {"name": agent, "execute": execute}
    if agent == "policy":
        spec = load_spec(policy)
        check_spec(spec, params.sim)
        encoder = params.embed.encoder
        if encoder.precision == "auto":  # what it came to where the features were made, not what it would be here
            encoder = replace(encoder, precision=spec.encoder["precision"])
        n_action_steps = action_steps(spec.architecture, cfg.execute)
        make_agent = partial(load_policy, policy.resolve(), encoder, params.sim, device, cfg, n_action_steps)
        identity = {"name": "policy", "device": device, **policy_identity(policy)}
        identity["sampling_steps"] = cfg.sampling_steps or spec.architecture.sampling_steps
        identity["execute"] = n_action_steps
    elif agent == "replay":
        make_agent = partial(ReplayAgent, demos.resolve(), execute)
        identity["demonstrations"] = replay_identity(demos, chosen)
        first, episodes = 0, min(episodes, replayable(demos, chosen))
    elif agent == "expert":
        make_agent = ExpertAgent
        identity["execute"] = ExpertAgent.execute
    else:
        make_agent = partial(NoopAgent if agent == "noop" else RandomAgent, execute)
    return Evaluation(
        make_agent=make_agent,
        identity=identity,
        sim=params.sim,
        tasks=chosen,
        episodes=episodes,
        settings=EpisodeSettings(first, cfg.max_steps, cfg.timeout_s, cfg.seed, params.sim.seed),
        videos_per_task=cfg.videos_per_task,
        threads=params.compute.threads_per_worker or 1,
    )


def load_policy(
    path: Path, encoder: EncoderParams, sim: Sim, device: str, cfg: EvalLibero, n_action_steps: int
) -> Agent:
    """Return the agent of a bundle, in a worker."""
    return PolicyAgent.load(path, encoder, sim, device, cfg.sampling_steps, n_action_steps)


def conditions_for(agent: str, asked: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the conditions that make sense: the expert needs no camera, a replay has a scene of its own."""
    if agent == "replay":
        return {}
    return {
        name: amount
        for name, amount in asked.items()
        if agent != "expert" or not set(condition_parts(name)) & set(OF_THE_AGENT)
    }


def compared(
    plain: list[EpisodeRecord], others: Mapping[str, list[EpisodeRecord]], asked: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Return a row of eval.json for each condition: its rates, and the episodes lost and gained to its baseline."""
    return [
        {
            "condition": name,
            "amount": asked[name],
            **rates(rows),
            "against": (base := baseline(name, asked)),
            **paired(others.get(base, plain), rows),
        }
        for name, rows in others.items()
    ]


def resumed(work: Path) -> int:
    """Return how many episodes a run before has finished."""
    journal = work / "episodes.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def checked_device(asked: str | None) -> str:
    """Return the torch device to use. Raises ConfigError for one that is not there."""
    if asked is None:
        return pick_device()
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"--device {asked}: not to be used here ({error}). Use cpu, or leave it out") from None
    return asked


def refuse_strange(out: Path) -> None:
    """Raise DataError for a directory with files that this stage did not write: it is about to be replaced."""
    strange = sorted({p.name for p in out.iterdir()} - PUBLISHED) if out.is_dir() else []
    if strange:
        raise DataError(f"--out {out}: holds {strange[0]}, which would be lost. Give a directory of its own")


def demonstrated(params: Params, records: list[EpisodeRecord]) -> int | None:
    """Return how many episodes began where one of the scripted demonstrations did; None for others' demonstrations."""
    if params.demos.source != "scripted":
        return None
    rows = range(params.demos.first_init_state, params.demos.first_init_state + params.demos.episodes)
    return sum(record.init_row in rows for record in records)


def draw(evaluation: Evaluation, episode: int, target: Path) -> None:
    """Write the film strip of one episode of the first task."""
    task = evaluation.tasks[0]
    record, image = picture(evaluation.make_agent(), task, episode, evaluation.sim, evaluation.settings)
    write_atomic(target, png(image))
    print(f"{target}: {task.suite} task {task.id}, episode {episode}: {record.outcome} after {record.steps} steps")


def protocol(evaluation: Evaluation, work: Path) -> dict[str, Any]:
    """Return every setting that the result was obtained with, asked for and used."""
    return {
        **evaluation.describe(),
        "transform": TRANSFORM_ID,
        "order": "seed, reset, set init state, settle; seeded before every reset",
        "success": "at any control step; ends the episode",
        "errors": "of the policy: failures; of simulator and machine: run once more, then reported apart",
        "interval": "Wilson, 95 %",
        "simulators": simulators(work),
    }


def refuse_all_errors(records: list[EpisodeRecord], work: Path) -> None:
    """Raise SimulatorError if no episode came to an end: that is no result. The next run starts afresh."""
    if records and all(r.outcome == "error" for r in records):
        kept = work / "episodes.failed.jsonl"
        (work / "episodes.jsonl").replace(kept)
        raise SimulatorError(f"all {len(records)} episodes ended in an error, first: {records[0].error}. See {kept}")


def publish(
    records: list[EpisodeRecord], report: dict[str, Any], work: Path, out: Path, others: dict[Path, Other]
) -> None:
    """Put the results in place, whole or not at all; then drop the unfinished work."""
    partial_out = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    write_episodes(records, work, partial_out)
    (partial_out / "conditions").mkdir()
    for place, (condition, changed_records) in others.items():
        write_episodes(changed_records, place, partial_out / "conditions" / condition)
    (partial_out / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
    write_figures(partial_out, report)
    publish_directory(partial_out, out)
    for place in (work, *others):
        shutil.rmtree(place)


def write_episodes(records: list[EpisodeRecord], work: Path, out: Path) -> None:
    """Write episodes.jsonl and videos/."""
    (out / "videos").mkdir(parents=True)
    write_records(out / "episodes.jsonl", records)
    for record in records:
        if record.video:
            shutil.copyfile(work / record.video, out / record.video)


if __name__ == "__main__":
    cli.run(main)
