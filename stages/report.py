"""Last stage: results/report.html, one page that needs nothing else.

    python -m stages.report
    python -m stages.report --summary                                   # print the result, write nothing
    python -m stages.report --results results/random --training ''      # of a baseline, which has no training

Reads results/flow (eval.json, episodes.jsonl, videos/) and runs/flow/train.json, and, where they exist, the
committed figures docs/results/single_task_overfit.json and docs/results/expert.json.
"""

import logging
from pathlib import Path

from pipeline.config import load
from pipeline.files import write_atomic
from pipeline.report.inputs import read_inputs, stage_seconds
from pipeline.report.page import page
from pipeline.rollout.metrics import headline
from stages import cli

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    parser = cli.parser(__doc__)
    parser.add_argument("--results", default="results/flow", help="of the evaluation (default: %(default)s)")
    parser.add_argument("--training", default="runs/flow/train.json", help="'' for none (default: %(default)s)")
    parser.add_argument("--figures", default="docs/results", help="committed results (default: %(default)s)")
    parser.add_argument("--out", default="results/report.html", help="default: %(default)s")
    parser.add_argument("--summary", action="store_true", help="print the result, write nothing")
    args = parser.parse_args(argv)
    figures = Path(args.figures)
    inputs = read_inputs(
        experiment=load(args.params).experiment,
        results=Path(args.results),
        training=Path(args.training) if args.training else None,
        overfit=figures / "single_task_overfit.json",
        expert=figures / "expert.json",
        recording=stage_seconds(Path("data/demos"), Path(".scratch/embed")),
    )
    out = Path(args.out)
    if not args.summary:
        write_atomic(out, page(inputs))
    print(headline(inputs.results))
    print(f"report: {out}")


if __name__ == "__main__":
    cli.run(main)
