"""Stage three: roll the policy out in the LIBERO simulator and count.

    python -m stages.eval_libero                                  # runs/flow/policy, as params.yaml says
    python -m stages.eval_libero --agent random                   # the floor; noop is the other one
    python -m stages.eval_libero --policy runs/mine/policy --out results/mine
    python -m stages.eval_libero --picture docs/rollout.png       # an episode as a film strip

Writes episodes.jsonl (a line per episode), eval.json (rates with intervals, the protocol in every detail) and videos/
into results/flow. Stopped at any time and started again it goes on with the episodes that are left, which it keeps in
.scratch/eval/, and ends in the same result.
"""

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from pipeline.config import Params, load
from pipeline.encode.transform import TRANSFORM_ID
from pipeline.errors import SimulatorError
from pipeline.files import write_atomic
from pipeline.libero.suites import tasks
from pipeline.policy.bundle import load_spec
from pipeline.provenance import provenance, versions
from pipeline.rollout.agent import NoopAgent, PolicyAgent, RandomAgent, check_spec, policy_identity
from pipeline.rollout.engine import Evaluation, evaluate, simulators
from pipeline.rollout.episode import EpisodeSettings
from pipeline.rollout.metrics import headline, summary, timings
from pipeline.rollout.record import EpisodeRecord, write_records
from pipeline.rollout.strip import picture
from pipeline.rollout.video import png
from stages import cli

log = logging.getLogger(__name__)
BASELINES = {"noop": NoopAgent, "random": RandomAgent}


def main(argv: list[str] | None = None) -> None:
    """Evaluate by params.yaml and publish the results."""
    parser = cli.parser(__doc__)
    parser.add_argument("--agent", choices=["policy", *BASELINES], default="policy", help="default: %(default)s")
    parser.add_argument("--policy", default="runs/flow/policy", help="bundle to evaluate (default: %(default)s)")
    parser.add_argument("--out", help="directory to write (default: results/flow, or results/<agent> for a baseline)")
    parser.add_argument("--device", default="cpu", help="of encoder and policy: cpu, cuda (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/eval", help="unfinished work (default: %(default)s)")
    parser.add_argument("--picture", help="draw one episode's film strip into this PNG, and stop")
    parser.add_argument("--episode", type=int, default=0, help="for --picture, of the first task (default: 0)")
    args = parser.parse_args(argv)
    params = load(args.params)
    out = Path(args.out or f"results/{'flow' if args.agent == 'policy' else args.agent}")
    evaluation = plan(params, args.agent, Path(args.policy), args.device)
    work = Path(args.scratch).resolve() / evaluation.fingerprint()
    if args.picture:
        draw(evaluation, args.episode, Path(args.picture))
        return
    started = perf_counter()
    records = evaluate(evaluation, params.compute, work)
    refuse_all_errors(records, work)
    report = {
        **summary(records),
        "protocol": protocol(evaluation, work),
        "versions": versions(),
        "timings": {"wall_s": round(perf_counter() - started, 1), **timings(records)},
        "provenance": provenance(),
    }
    publish(records, report, work, out)
    print(headline(report))
    print(f"episodes, protocol and videos: {out}")


def plan(params: Params, agent: str, policy: Path, device: str) -> Evaluation:
    """Return what params.yaml asks for. Raises DataError for a policy that does not fit it."""
    cfg = params.eval_libero
    if agent == "policy":
        check_spec(load_spec(policy), params.sim)
        encoder = params.embed.encoder
        make_agent = partial(PolicyAgent.load, policy.resolve(), encoder, params.sim, device)
        identity = {"name": "policy", "device": device, **policy_identity(policy)}
    else:
        make_agent = partial(BASELINES[agent], execute=params.policy.execute)
        identity = {"name": agent, "execute": params.policy.execute}
    return Evaluation(
        make_agent=make_agent,
        identity=identity,
        sim=params.sim,
        tasks=tuple(t for suite in params.data.suites for t in tasks(suite, params.data.tasks[suite])),
        episodes=cfg.episodes,
        settings=EpisodeSettings(cfg.first_init_state, cfg.max_steps, cfg.timeout_s, cfg.seed, params.sim.seed),
        videos_per_task=cfg.videos_per_task,
    )


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
        "errors": "run once more, then reported apart: never counted as failures",
        "interval": "Wilson, 95 %",
        "simulators": simulators(work),
    }


def refuse_all_errors(records: list[EpisodeRecord], work: Path) -> None:
    """Raise SimulatorError if no episode came to an end: that is no result. The next run starts afresh."""
    if records and all(r.outcome == "error" for r in records):
        kept = work / "episodes.failed.jsonl"
        (work / "episodes.jsonl").replace(kept)
        raise SimulatorError(f"all {len(records)} episodes ended in an error, first: {records[0].error}. See {kept}")


def publish(records: list[EpisodeRecord], report: dict[str, Any], work: Path, out: Path) -> None:
    """Put the results in place, whole or not at all; then drop the unfinished work."""
    partial_out = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    (partial_out / "videos").mkdir(parents=True)
    write_records(partial_out / "episodes.jsonl", records)
    for record in records:
        if record.video:
            shutil.copyfile(work / record.video, partial_out / record.video)
    (partial_out / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    partial_out.rename(out)
    shutil.rmtree(work)


if __name__ == "__main__":
    cli.run(main)
