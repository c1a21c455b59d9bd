"""Several evaluations side by side: heads, sampling steps, seeds, on the same init states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, did_you_mean
from pipeline.policy.settings import HEADS_IN_STEPS
from pipeline.report.html import document
from pipeline.report.inputs import EVAL_KEYS, read_json
from pipeline.report.results import SUCCESS, condition_name, pairs
from pipeline.report.table import NONE, Cell, Code, Rate, Table, duration, number
from pipeline.rollout.metrics import paired
from pipeline.rollout.results import EpisodeRecord, read_records


def training_of(run: str) -> str:
    """Return the name of the training that an evaluation is of: flow-0 for flow-0-steps-4."""
    return run.partition("-steps-")[0]


@dataclass(frozen=True)
class Run:
    """One evaluation and, for a policy, its training.

    Attributes:
        changed: its episodes under each condition of `eval_libero.conditions`.
    """

    name: str
    results: Mapping[str, Any]
    records: tuple[EpisodeRecord, ...]
    training: Mapping[str, Any] | None
    changed: Mapping[str, tuple[EpisodeRecord, ...]]


def find_runs(places: Sequence[Path], trainings: Path, against: str | None = None) -> list[Run]:
    """Read the evaluations in these directories; the one to compare with comes first.

    Args:
        against: its name; None for the first that is given. The others follow by their success.

    Raises:
        DataError: a file is missing or damaged, there is no evaluation, or none of that name.
    """
    runs = [read_run(place, trainings) for place in places]
    if against is None:
        return runs
    if against not in (names := [run.name for run in runs]):
        raise DataError(f"--against {against}: there is no such evaluation.{did_you_mean(against, names)}")
    rest = sorted((run for run in runs if run.name != against), key=lambda run: -(run.results["success_rate"] or 0))
    return [*(run for run in runs if run.name == against), *rest]


def read_run(results: Path, trainings: Path) -> Run:
    """Read an evaluation and the training of the same name, if there is one: `l1-0-steps-4` is of training `l1-0`.

    Args:
        results: directory with eval.json, episodes.jsonl and conditions/; its name is the run's.
        trainings: directory that holds `<name>/train.json`.

    Raises:
        DataError: a file of the evaluation is missing or damaged.
    """
    tree = read_json(results / "eval.json", EVAL_KEYS, f"stages.eval_libero --out {results}")
    record = trainings / training_of(results.name) / "train.json"
    training = read_json(record, ("wall_s",), "stages.train_flow") if record.exists() else None
    names = [row["condition"] for row in tree.get("conditions", ())]
    changed = {name: tuple(read_records(results / "conditions" / name / "episodes.jsonl")) for name in names}
    return Run(results.name, tree, tuple(read_records(results / "episodes.jsonl")), training, changed)


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Return plain JSON values, with a row for each run; `against_first` is McNemar's on the same init states.

    It is None where the scenes are not the same: other drawing, settling, seed or steps, or a replay's own states.
    """
    first, rows = runs[0], []
    amounts = {row["condition"]: row["amount"] for row in first.results.get("conditions", ())}
    for run in runs:
        alike = run is not first and _scene(run) == _scene(first)
        conditions, held_out = [], run.results.get("held_out")
        for row in run.results.get("conditions", ()):
            name = row["condition"]
            same = alike and name in amounts and amounts[name] == row["amount"]
            both = paired(first.changed[name], run.changed[name]) if same else None
            conditions.append({"condition": name, "amount": row["amount"], **_rates(row), "against_first": both})
        if held_out:  # against the first one's success on these tasks
            own = [r for r in run.records if [r.suite, r.task] in held_out["tasks"]]
            held_out = {**held_out, "against_first": paired(first.records, own) if alike else None}
        both = paired(first.records, run.records) if alike else None
        rows.append({**_row(run), "against_first": both, "conditions": conditions, "held_out": held_out})
    suite = " + ".join(dict.fromkeys(str(run.results["suite"]) for run in runs))
    return {"suite": suite, "rows": rows, "provenance": first.results.get("provenance")}


def _scene(run: Run) -> Any:
    """What must be equal for two runs to have met the same scenes."""
    protocol = run.results["protocol"]
    agent = protocol.get("agent", {})
    limits = {(t["suite"], t["task"]): t["max_steps"] for t in protocol.get("tasks", ())}
    return protocol.get("sim"), protocol.get("sim_seed"), protocol.get("condition"), limits, agent.get("demonstrations")


def comparison_page(compared: Mapping[str, Any]) -> str:
    """Return the page of what `compare` gave."""
    words = f"{len(compared['rows'])} evaluations on {compared['suite']}, LIBERO simulator"
    parts = (
        ("Side by side", comparison(compared).html()),
        ("Sampling steps", steps(compared).html()),
        ("With something changed", conditions_changed(compared).html()),
        ("Tasks not learnt from", new_tasks(compared).html()),
    )
    return document("Comparison", words, parts)


def comparison(compared: Mapping[str, Any]) -> Table:
    """The policies side by side, paired by init state."""
    first = compared["rows"][0]["name"]
    rows = [
        (
            Code(row["name"]),
            str(row["head"]) + (f", {_counted(row['sampling_steps'])}" if row["sampling_steps"] else ""),
            Rate(row),
            pairs(row["against_first"]),
            number(row["val_action_mse"], "{:.4f}"),
            duration(row["training_s"]),
            number(row["parameters"] and row["parameters"] / 1e6, "{:.1f} M"),
            number(row["policy_ms"], "{:.0f} ms"),
        )
        for row in compared["rows"]
    ]
    head = ("policy", "head", SUCCESS, f"against {first}", "val. MSE", "training", "weights", "inference")
    caption = f"Against {first}: the init states that both began in, with McNemar's p. Inference: median, with encoder"
    return Table(caption, head, rows, (4, 5, 6, 7))


def steps(compared: Mapping[str, Any]) -> Table:
    """Success of each policy that was sampled in several numbers of steps."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in compared["rows"]:
        if row["sampling_steps"] is not None:
            found.setdefault(training_of(row["name"]), {})[row["sampling_steps"]] = row
    several = {name: by for name, by in found.items() if len(by) > 1}
    columns = sorted({n for by in several.values() for n in by})
    rows = []
    for name, by in several.items():
        bent = number(next(iter(by.values())).get("straightness"), "{:.3f}")
        rows.append((Code(name), bent, *(Rate(by[n]) if n in by else NONE for n in columns)))
    head = ("policy", "straightness (0: straight)", *(_counted(n) for n in columns))
    caption = "Success by sampling steps. Straightness: mean squared difference of the velocity and a straight path's"
    return Table(caption, head, rows, (1,))


def _counted(n: int) -> str:
    return f"{n} step{'s' if n > 1 else ''}"


def conditions_changed(compared: Mapping[str, Any]) -> Table:
    """Success of each policy with something changed, against the first one's with the same."""
    found = {
        row["name"]: {condition_name(c["condition"], c["amount"]): c for c in row["conditions"]}
        for row in compared["rows"]
        if row.get("conditions")
    }
    columns = list(dict.fromkeys(name for by in found.values() for name in by))
    rows = [(Code(name), *(_against(by.get(column)) for column in columns)) for name, by in found.items()]
    caption = f"Success under each condition, against {compared['rows'][0]['name']} under the same"
    return Table(caption, ("policy", *columns), rows)


def new_tasks(compared: Mapping[str, Any]) -> Table:
    """Success on tasks that a policy did not learn from."""
    rows = [
        (Code(row["name"]), _task_names(row["held_out"]["tasks"]), _against(row["held_out"]))
        for row in compared["rows"]
        if row.get("held_out")
    ]
    caption = f"Success on tasks not learnt from, against {compared['rows'][0]['name']} on the same"
    return Table(caption, ("policy", "tasks held out", SUCCESS), rows)


def _against(row: Mapping[str, Any] | None) -> Cell:
    """A rate, and what was lost and gained where it is paired."""
    if row is None:
        return NONE
    return Rate(row, pairs(row["against_first"]) if row["against_first"] else "")


def _task_names(tasks: Sequence[Sequence[Any]]) -> str:
    """Return suites with the numbers of their tasks, from [suite, number] pairs."""
    suites = dict.fromkeys(suite for suite, _ in tasks)
    return "; ".join(f"{suite} {', '.join(str(i) for s, i in tasks if s == suite)}" for suite in suites)


def _row(run: Run) -> dict[str, Any]:
    agent = run.results["protocol"].get("agent", {})
    built = agent.get("architecture", {})
    training = run.training or {}
    head = built.get("head")
    as_trained = agent.get("sampling_steps") == built.get("sampling_steps", agent.get("sampling_steps"))
    return {
        "name": run.name,
        "head": f"{head}, {built['head_network']}" if head in HEADS_IN_STEPS else head or agent.get("name"),
        "sampling_steps": agent["sampling_steps"] if head in HEADS_IN_STEPS else None,
        **_rates(run.results),
        "val_action_mse": training.get("val_action_mse") if as_trained else None,
        "straightness": training.get("val_straightness"),
        "training_s": training.get("wall_s"),
        "parameters": training.get("trainable_parameters", {}).get("total"),
        "policy_ms": run.results["timings"]["policy_ms"]["p50"],
        "agent": agent,
        "recipe": training.get("recipe"),
    }


def _rates(results: Mapping[str, Any]) -> dict[str, Any]:
    return {key: results[key] for key in ("n", "successes", "success_rate", "wilson_low", "wilson_high")}
