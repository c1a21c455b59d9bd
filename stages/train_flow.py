"""Stage two: train fusion and flow on the cached features.

    accelerate launch --cpu -m stages.train_flow                # the smallest: one CPU process
    accelerate launch stages/train_flow.py                      # as accelerate is configured: one GPU, several, nodes
    accelerate launch --config_file configs/accelerate/gpu2.yaml -m stages.train_flow

Reads data/embeddings/<suite>.zarr; writes the policy bundle runs/flow/policy and runs/flow/train.json. Stopped at any
time and started again it goes on from its last checkpoint, in .scratch/train/, and ends in the same policy.
"""

from pathlib import Path

from pipeline.train.settings import TRACKERS
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Train by params.yaml and publish the policy."""
    parser = cli.parser(__doc__)
    parser.add_argument("--variant", metavar="NAME", help="train what comparison.policies.NAME names")
    parser.add_argument("--embeddings", default="data/embeddings", help="where the stores are (default: %(default)s)")
    parser.add_argument(
        "--demos",
        default="data/demos",
        help="frames, read if train_flow.encoder.tune asks for them (default: %(default)s)",
    )
    parser.add_argument("--out", default="runs/flow", help="directory to write (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/train", help="directory of checkpoints (default: %(default)s)")
    parser.add_argument(
        "--track",
        nargs="*",
        choices=TRACKERS,
        default=TRACKERS,
        help=f"curves to write while it runs, below --out (default: {' '.join(TRACKERS)})",
    )
    args = parser.parse_args(argv)
    params = cli.settings(args)
    from pipeline.train.job import Places, run  # torch and accelerate take seconds to import

    told = run(
        params.train_flow,
        params.policy,
        params.embed.encoder,
        {suite: params.data.tasks[suite] for suite in params.data.suites},
        params.demos.source,
        Places(Path(args.embeddings), Path(args.demos), Path(args.out), Path(args.scratch)),
        args.track,
    )
    if told:
        print(told)


if __name__ == "__main__":
    cli.run(main)
