"""Keep the figures of a run as docs/results/EXPERIMENT.json, for documents to quote.

python -m stages.record
python -m pipeline.report.markdown README.md docs/heads.md      # then fill the documents' tables from them
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.files import write_atomic
from pipeline.report.inputs import read_json
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Write the file."""
    parser = cli.parser(__doc__)
    parser.add_argument("--results", default="results/flow", help="of the evaluation (default: %(default)s)")
    parser.add_argument("--training", default="runs/flow/train.json", help="'' for none (default: %(default)s)")
    parser.add_argument("--out", help="default: docs/results/EXPERIMENT.json")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    seconds = stage_seconds(Path("data/demos"), Path(".scratch/embed"), params.data.suites)
    kept = figures(Path(args.results) / "eval.json", Path(args.training) if args.training else None, seconds)
    out = Path(args.out or f"docs/results/{params.experiment}.json")
    write_atomic(out, json.dumps(kept, indent=1) + "\n")
    print(out)


def figures(evaluation: Path, training: Path | None, seconds: dict[str, float]) -> dict[str, Any]:
    """Return what training and evaluation gave, those of them that were run, and the seconds of each stage."""
    kept: dict[str, Any] = {"evaluation": None, "seconds": {stage: round(s, 1) for stage, s in seconds.items()}}
    if training:
        kept |= read_json(training, ("epochs", "wall_s"), "dvc repro train_flow")
        kept["seconds"]["train_flow"] = kept["wall_s"]
    if evaluation.exists():
        kept["evaluation"] = read_json(evaluation, ("per_suite", "timings"), "dvc repro eval_libero")
        if not kept["evaluation"]["timings"].get("episodes_resumed"):
            kept["seconds"]["eval_libero"] = kept["evaluation"]["timings"]["wall_s"]
    return kept


def stage_seconds(demos: Path, embed: Path, suites: Sequence[str]) -> dict[str, float]:
    """Return the wall times that stages before training noted beside their outputs.

    A stage is missing where one of the suites has no note, or was interrupted: then nobody knows what it took in all.
    """
    found = {}
    for stage, name in (("demos", demos / "{}.provenance.json"), ("embed", embed / "{}.json")):
        paths = [Path(str(name).format(suite)) for suite in suites]
        took = [read_json(p, (), f"dvc repro -f {stage}").get("took", {}) if p.exists() else {} for p in paths]
        whole = all("seconds" in t and not (t.get("images_resumed") or t.get("episodes_resumed")) for t in took)
        if whole:
            found[stage] = sum(float(t["seconds"]) for t in took)
    return found


if __name__ == "__main__":
    cli.run(main)
