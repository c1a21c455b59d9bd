"""Several evaluations side by side, paired by init state: a page, and the figures as JSON.

python -m stages.compare results/flow results/l1      # results/comparison.html, and .json
python -m stages.compare --against flow-0             # section `comparison`: results/against-flow-0.html, and .json
python -m stages.compare results/flow results/l1 --record     # keeps the figures in docs/results, to commit
"""

import json
from pathlib import Path

from pipeline.config.params import Comparison
from pipeline.errors import ConfigError
from pipeline.files import write_atomic
from pipeline.report.comparison import compare, comparison_page, find_runs
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Write the page and the figures."""
    parser = cli.parser(__doc__)
    parser.add_argument("results", nargs="*", help="default: results/comparison/..., as params.yaml names them")
    parser.add_argument(
        "--against", metavar="NAME", help="which of them to compare the others with (default: the first)"
    )
    parser.add_argument("--runs", default="runs", help="their trainings, by the same names (default: %(default)s)")
    parser.add_argument("--out", help="the page (default: results/comparison.html, or against-NAME.html)")
    parser.add_argument(
        "--record", action="store_true", help="put the figures into docs/results/EXPERIMENT-against-NAME.json"
    )
    args = parser.parse_args(argv)
    params = cli.settings(args)
    places = [Path(p) for p in args.results] or compared_results(params.comparison)
    compared = compare(find_runs(places, Path(args.runs), args.against))
    out = Path(args.out or f"results/{f'against-{args.against}' if args.against else 'comparison'}.html")
    kept = out.with_suffix(".json")
    if args.record:
        kept = Path("docs/results") / f"{params.experiment}-against-{compared['rows'][0]['name']}.json"
    write_atomic(out, comparison_page(compared))
    write_atomic(kept, json.dumps(compared, indent=1) + "\n")
    print(f"{out}\n{kept}")


def compared_results(cfg: Comparison) -> list[Path]:
    """Return where the evaluations of section `comparison` lie; what else lies there may be of other days."""
    runs = (*cfg.runs(), *cfg.runs_by_steps())
    if not runs:
        raise ConfigError("comparison names no policy. Name some, compose comparison=heads, or give RESULTS")
    return [Path("results/comparison") / run for run in runs]


if __name__ == "__main__":
    cli.run(main)
