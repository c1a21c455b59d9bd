"""The few figures of an evaluation that `dvc metrics` and `dvc plots` show."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.json"
TASKS = "tasks.csv"


def write_figures(out: Path, report: Mapping[str, Any]) -> None:
    """Write metrics.json (six numbers) and tasks.csv (success per task) of eval.json's content into `out`."""
    names = ("success_rate", "wilson_low", "wilson_high", "n", "errors")
    few = {**{name: report.get(name) for name in names}, "mean_steps": report.get("mean_steps_to_success")}
    (out / METRICS).write_text(json.dumps(few, indent=2) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("task", "success_rate", "n"))
    writer.writerows((f"{r['suite']} {r['task']}", r["success_rate"], r["n"]) for r in report.get("per_task", ()))
    (out / TASKS).write_text(text.getvalue())
