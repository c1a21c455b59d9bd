"""Last stage: results/report.html, one page of this run that needs nothing else.

    python -m stages.report
    python -m stages.report --summary                                   # print the result, write nothing
    python -m stages.report --results results/random --training '' --out results/random.html   # of a baseline

Reads results/flow (eval.json, episodes.jsonl, videos/) and runs/flow/train.json, and nothing else. Demonstrations have
a page of their own (stages.dataset), several evaluations side by side another (stages.compare).
"""

from pathlib import Path

from pipeline.files import write_atomic
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    parser = cli.parser(__doc__)
    parser.add_argument("--results", default="results/flow", help="of the evaluation (default: %(default)s)")
    parser.add_argument("--training", default="runs/flow/train.json", help="'' for none (default: %(default)s)")
    parser.add_argument("--out", default="results/report.html", help="the page (default: %(default)s)")
    parser.add_argument("--summary", action="store_true", help="print the result, write nothing")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    from pipeline.report.inputs import read_inputs  # scipy takes a second to import
    from pipeline.report.page import page
    from pipeline.rollout.metrics import headline

    training = Path(args.training) if args.training else None
    inputs = read_inputs(params.experiment, Path(args.results), training)
    if not args.summary:
        write_atomic(Path(args.out), page(inputs))
    print(headline(inputs.results))
    print(f"report: {args.out}")


if __name__ == "__main__":
    cli.run(main)
