"""Last stage: results/report.html, one page that needs nothing else.

    python -m stages.report
    python -m stages.report --summary                                   # print the result, write nothing
    python -m stages.report --record                                    # docs/results/<experiment>.json, to commit
    python -m stages.report --results results/random --training '' --out results/random.html   # of a baseline
    python -m stages.report --tables README.md docs/heads.md            # fill their tables from docs/results
    python -m stages.report --demos libero_spatial                      # results/libero_spatial_demos.html
    python -m stages.report --compare results/flow results/l1           # results/comparison.html, and .json
    python -m stages.report --compare --against flow-0    # section `comparison`: results/against-flow-0.html

Reads results/flow (eval.json, episodes.jsonl, videos/) and runs/flow/train.json, and, where they exist, the committed
figures docs/results/single_task_overfit_scripted.json, expert.json and <experiment>-against-<run>.json. With --demos
it shows the demonstrations of a suite instead: videos of both cameras, actions against time, distributions, and what
was left out; with --compare several evaluations, paired by init state, whose figures --record keeps, too.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.config import Params
from pipeline.config.params import Comparison
from pipeline.errors import ConfigError
from pipeline.files import write_atomic
from pipeline.libero.demos.layout import cameras_of
from pipeline.libero.demos.read import scan
from pipeline.libero.suites import tasks
from pipeline.report.comparison import compare, comparison_page, find_runs
from pipeline.report.dataset import dataset_page
from pipeline.report.inputs import read_inputs, read_json, stage_seconds
from pipeline.report.markdown import fill
from pipeline.report.page import page
from pipeline.rollout.metrics import headline
from stages import cli

DEMOS = Path("data/demos")


def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    parser = cli.parser(__doc__)
    parser.add_argument("--results", default="results/flow", help="of the evaluation (default: %(default)s)")
    parser.add_argument("--training", default="runs/flow/train.json", help="'' for none (default: %(default)s)")
    parser.add_argument("--figures", default="docs/results", help="committed results (default: %(default)s)")
    parser.add_argument("--out", help="default: results/report.html, SUITE_demos.html, comparison.html ...")
    parser.add_argument("--record", action="store_true", help="keep the figures of this experiment below --figures")
    parser.add_argument("--summary", action="store_true", help="print the result, write nothing")
    parser.add_argument("--tables", metavar="FILE", nargs="+", help="make the tables of these documents anew")
    parser.add_argument("--demos", metavar="SUITE", help="show the demonstrations of this suite instead")
    parser.add_argument(
        "--compare",
        metavar="RESULTS",
        nargs="*",
        help="show these evaluations side by side instead (default: results/comparison/..., as params.yaml names them)",
    )
    parser.add_argument(
        "--against", metavar="NAME", help="which of them to compare the others with (default: the first)"
    )
    parser.add_argument("--runs", default="runs", help="their trainings, by the same names (default: %(default)s)")
    args = parser.parse_args(argv)
    figures, results = Path(args.figures), Path(args.results)
    params = cli.settings(args)
    experiment = params.experiment
    training = Path(args.training) if args.training else None
    if args.tables:
        for document in map(Path, args.tables):
            write_atomic(document, fill(document.read_text(), Path()))
            print(document)
        return
    if args.demos:
        out = Path(args.out or f"results/{args.demos}_demos.html")
        print(show_demos(args.demos, params, out))
        return
    if args.compare is not None:
        out = Path(args.out or f"results/{f'against-{args.against}' if args.against else 'comparison'}.html")
        places = [Path(p) for p in args.compare] or compared_results(params.comparison)
        compared = compare(find_runs(places, Path(args.runs), args.against))
        print(show_comparison(compared, out, figures / experiment if args.record else None))
        return
    seconds = stage_seconds(DEMOS, Path(".scratch/embed"), params.data.suites)
    if args.record:
        print(record(figures / f"{experiment}.json", results / "eval.json", training, seconds))
        return
    inputs = read_inputs(
        experiment=experiment,
        results=results,
        training=training,
        overfit=figures / "single_task_overfit_scripted.json",
        expert=figures / "expert.json",
        comparisons=sorted(figures.glob("*-against-*.json")),
        recording=seconds,
    )
    out = Path(args.out or "results/report.html")
    if not args.summary:
        write_atomic(out, page(inputs))
    print(headline(inputs.results))
    print(f"report: {out}")


def show_comparison(compared: dict[str, Any], out: Path, record: Path | None) -> Path:
    """Write the page of what `compare` gave, and its figures beside it, or to `<record>-against-<the first>.json`."""
    first = compared["rows"][0]["name"]
    kept = record.with_name(f"{record.name}-against-{first}.json") if record else out.with_suffix(".json")
    write_atomic(out, comparison_page(compared))
    write_atomic(kept, json.dumps(compared, indent=1) + "\n")
    return out


def compared_results(cfg: Comparison) -> list[Path]:
    """Return where the evaluations of section `comparison` lie; what else lies there may be of other days."""
    runs = (*cfg.runs(), *cfg.runs_by_steps())
    if not runs:
        raise ConfigError("comparison names no policy. Name some, compose comparison=heads, or give --compare RESULTS")
    return [Path("results/comparison") / run for run in runs]


def show_demos(suite: str, params: Params, out: Path) -> Path:
    """Write the page of a suite's demonstrations."""
    wanted, cameras = tasks(suite, params.data.tasks.get(suite)), cameras_of(params.demos)
    demos, quarantine = scan(DEMOS, suite, wanted, cameras)
    write_atomic(out, dataset_page(suite, wanted, demos, quarantine, cameras))
    return out


def record(target: Path, evaluation: Path, training: Path | None, seconds: dict[str, float]) -> Path:
    """Write what training and evaluation gave, those of them that were run, as the figures that documents quote."""
    kept: dict[str, Any] = {"evaluation": None, "seconds": {stage: round(s, 1) for stage, s in seconds.items()}}
    if training:
        kept |= read_json(training, ("epochs", "wall_s"), "dvc repro train_flow")
        kept["seconds"]["train_flow"] = kept["wall_s"]
    if evaluation.exists():
        kept["evaluation"] = read_json(evaluation, ("per_suite", "timings"), "dvc repro eval_libero")
        if not kept["evaluation"]["timings"].get("episodes_resumed"):
            kept["seconds"]["eval_libero"] = kept["evaluation"]["timings"]["wall_s"]
    write_atomic(target, json.dumps(kept, indent=1) + "\n")
    return target


if __name__ == "__main__":
    cli.run(main)
