"""Last stage: results/report.html, one page that needs nothing else.

    python -m stages.report
    python -m stages.report --summary                                   # print the result, write nothing
    python -m stages.report --record                                    # docs/results/<experiment>.json, to commit
    python -m stages.report --results results/random --training '' --out results/random.html   # of a baseline

Reads results/flow (eval.json, episodes.jsonl, videos/) and runs/flow/train.json, and, where they exist, the
committed figures docs/results/single_task_overfit_scripted.json and docs/results/expert.json.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.config import load
from pipeline.files import write_atomic
from pipeline.report.inputs import read_inputs, read_json, stage_seconds
from pipeline.report.page import page
from pipeline.rollout.metrics import headline
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    parser = cli.parser(__doc__)
    parser.add_argument("--results", default="results/flow", help="of the evaluation (default: %(default)s)")
    parser.add_argument("--training", default="runs/flow/train.json", help="'' for none (default: %(default)s)")
    parser.add_argument("--figures", default="docs/results", help="committed results (default: %(default)s)")
    parser.add_argument("--out", default="results/report.html", help="default: %(default)s")
    parser.add_argument("--record", action="store_true", help="keep the figures of this experiment below --figures")
    parser.add_argument("--summary", action="store_true", help="print the result, write nothing")
    args = parser.parse_args(argv)
    figures, results = Path(args.figures), Path(args.results)
    params = load(args.params)
    experiment = params.experiment
    training = Path(args.training) if args.training else None
    seconds = stage_seconds(Path("data/demos"), Path(".scratch/embed"), params.data.suites)
    if args.record:
        print(record(figures / f"{experiment}.json", results / "eval.json", training, seconds))
        return
    inputs = read_inputs(
        experiment=experiment,
        results=results,
        training=training,
        overfit=figures / "single_task_overfit_scripted.json",
        expert=figures / "expert.json",
        recording=seconds,
    )
    out = Path(args.out)
    if not args.summary:
        write_atomic(out, page(inputs))
    print(headline(inputs.results))
    print(f"report: {out}")


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
