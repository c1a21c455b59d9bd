"""Stage three: roll the policy out in the LIBERO simulator and count.

    python -m stages.eval_libero                                  # runs/flow/policy, as params.yaml says
    python -m stages.eval_libero --agent random                   # the floor; noop is the other one
    python -m stages.eval_libero --agent replay                   # demonstrations again: what a sound harness gives
    python -m stages.eval_libero --agent expert                   # the scripted expert
    python -m stages.eval_libero --agent ws://127.0.0.1:8000      # any policy behind openpi's protocol
    python -m stages.eval_libero --agent mine.agent:Agent         # any class (--policy PATH is its one argument)
    python -m stages.eval_libero --policy runs/mine/policy --out results/mine

Writes episodes.jsonl (a line per episode), eval.json (rates with intervals, the protocol in every detail) and videos/
into results/flow, and below conditions/ the episodes under what eval_libero.conditions names. Stopped at any time and
started again it goes on with the episodes that are left, which it keeps in .scratch/eval/, and ends in the same result.
"""

import re
from pathlib import Path

from pipeline.config import Params
from pipeline.libero.suites import tasks
from pipeline.provenance import without_credentials
from pipeline.rollout.settings import AGENTS, POLICY
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Evaluate by params.yaml and publish the results."""
    parser = cli.parser(__doc__)
    others = "ws://host:port or package.module:Class"
    parser.add_argument("--agent", default="policy", help=f"{', '.join(AGENTS)}, {others} (default: %(default)s)")
    parser.add_argument("--policy", type=Path, help=f"bundle to evaluate, or argument of a class (default: {POLICY})")
    parser.add_argument("--agent-id", help="which policy a server serves, if its metadata does not say it")
    parser.add_argument("--demos", default="data/demos", help="what replay replays (default: %(default)s)")
    parser.add_argument("--out", help="directory to write (default: results/flow, or results/<agent> for a baseline)")
    parser.add_argument("--device", help="of encoder and policy: cpu, cuda, cuda:1... (default: cuda if there is one)")
    parser.add_argument("--export", choices=("lerobot",), help="write eval_info.json as lerobot-eval does, too")
    parser.add_argument("--scratch", default=".scratch/eval", help="unfinished work (default: %(default)s)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    from pipeline.policy.bundle import load_spec  # torch and open_clip take seconds to import
    from pipeline.rollout.export import write_eval_info
    from pipeline.rollout.metrics import headline
    from pipeline.rollout.plan import conditions_for, plan
    from pipeline.rollout.publish import Training, run
    from pipeline.rollout.results import read_records

    cfg = params.eval_libero
    out = Path(args.out or f"results/{label(args.agent)}")
    evaluation = plan(
        args.agent,
        tuple(t for suite in params.data.suites for t in tasks(suite, params.data.tasks[suite])),
        params.sim,
        cfg,
        policy=args.policy,
        agent_id=args.agent_id,
        encoder=params.embed.encoder,
        demos=Path(args.demos),
        n_action_steps=params.policy.n_action_steps,
        device=args.device,
        threads=params.compute.threads_per_worker or 1,
    )
    report = run(
        evaluation,
        conditions_for(args.agent, cfg.conditions),
        cfg.condition_episodes,
        params.compute,
        Path(args.scratch),
        out,
        Training(
            tasks=load_spec(args.policy or POLICY).data["tasks"] if args.agent == "policy" else None,
            init_rows=demonstrated_rows(params) if args.agent in AGENTS and args.agent != "replay" else None,
        ),
    )
    if args.export:
        write_eval_info(out, read_records(out / "episodes.jsonl"))
    print(headline(report))
    print(f"episodes, protocol and videos: {out}")


def label(agent: str) -> str:
    """Return the directory's name for an agent: flow for the pipeline's own policy."""
    shown = without_credentials(agent).removeprefix("ws://").removeprefix("wss://")
    return "flow" if agent == "policy" else re.sub(r"[^\w.-]+", "-", shown)


def demonstrated_rows(params: Params) -> range | None:
    """Return the init states that the scripted demonstrations began in; None for others' demonstrations."""
    if params.demos.source != "scripted":
        return None
    return range(params.demos.first_init_state, params.demos.first_init_state + params.demos.episodes)


if __name__ == "__main__":
    cli.run(main)
