"""Several evaluations side by side: heads, sampling steps, seeds, on the same init states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, did_you_mean
from pipeline.policy.settings import HEADS_IN_STEPS
from pipeline.report.charts import interval_bar
from pipeline.report.html import Content, Markup, document, el, table
from pipeline.report.inputs import EVAL_KEYS, read_json
from pipeline.report.sections import condition_name, duration, interval, percent
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
    tree = read_json(results / "eval.json", (*EVAL_KEYS, "protocol", "timings"), f"stages.eval_libero --out {results}")
    record = trainings / training_of(results.name) / "train.json"
    training = read_json(record, ("wall_s",), "stages.train_flow") if record.exists() else None
    names = [row["condition"] for row in tree.get("conditions", ())]
    changed = {name: tuple(read_records(results / "conditions" / name / "episodes.jsonl")) for name in names}
    return Run(results.name, tree, tuple(read_records(results / "episodes.jsonl")), training, changed)


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Return plain JSON values, with a row for each run; `against_first` is McNemar's on the same init states.

    It is None where the scenes are not the same: other drawing, settling, seed or steps, or a replay's own states.
    """
    first = runs[0]
    suite = " + ".join(dict.fromkeys(str(run.results["suite"]) for run in runs))

    def against(run: Run, before: Sequence[EpisodeRecord], after: Sequence[EpisodeRecord]) -> dict[str, Any] | None:
        return paired(before, after) if run is not first and _scene(run) == _scene(first) else None

    def conditions(run: Run) -> list[dict[str, Any]]:
        """Its rates under each condition, against the first one's under the same."""
        firsts = {row["condition"]: row["amount"] for row in first.results.get("conditions", ())}
        rows = []
        for row in run.results.get("conditions", ()):
            name, amount = row["condition"], row["amount"]
            alike = name in firsts and firsts[name] == amount
            pairs = against(run, first.changed[name], run.changed[name]) if alike else None
            rows.append({"condition": name, "amount": amount, **_rates(row), "against_first": pairs})
        return rows

    def held_out(run: Run) -> dict[str, Any] | None:
        """The tasks that it did not learn from, against the first one's success there."""
        rates = run.results.get("held_out")
        if not rates:
            return None
        records = [r for r in run.records if [r.suite, r.task] in rates["tasks"]]
        return {**rates, "against_first": against(run, first.records, records)}

    rows = [
        {
            **_row(run),
            "against_first": against(run, first.records, run.records),
            "conditions": conditions(run),
            "held_out": held_out(run),
        }
        for run in runs
    ]
    return {"suite": suite, "rows": rows, "provenance": first.results.get("provenance")}


def _scene(run: Run) -> Any:
    """What must be equal for two runs to have met the same scenes."""
    protocol = run.results["protocol"]
    agent = protocol.get("agent", {})
    limits = {(t["suite"], t["task"]): t["max_steps"] for t in protocol.get("tasks", ())}
    return protocol.get("sim"), protocol.get("sim_seed"), protocol.get("condition"), limits, agent.get("demonstrations")


def comparison_page(compared: Mapping[str, Any]) -> str:
    """Return the page of what `compare` gave."""
    header = (
        el("h1", "Comparison"),
        el("p", f"{len(compared['rows'])} evaluations on {compared['suite']}, LIBERO simulator"),
    )
    return document("Comparison", header, comparison("Side by side", compared))


def comparison(title: str, compared: Mapping[str, Any]) -> Markup:
    """Return a section of what `compare` gave: a table; and success by steps, conditions, held-out tasks, if any."""
    first = compared["rows"][0]["name"]
    rows = [_cells(row) for row in compared["rows"]]
    head: tuple[str, ...] = ("Run", "Success", "0 to 100 %", "95 % interval", "Solved")
    head += (
        f"Against {first}",
        "McNemar's p",
        "Head",
        "Steps",
        "Validation MSE",
        "Training",
        "Parameters",
        "Latency",
    )
    caption = (
        f"Against {first}: episodes lost and gained on the init states that both began in; latency: median of a look, "
        "encoder included"
    )
    made = table(caption, head, rows, numbers=(1, 4, 5, 6, 8, 9, 10, 11, 12))
    others = (_steps_table, _conditions_table, _held_out_table)
    return el("section", el("h2", title), made, *(make(compared["rows"]) for make in others))


def by_steps(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], dict[str, dict[int, Mapping[str, Any]]]]:
    """Return the policies sampled in several numbers of steps: all the numbers, and the rows by name and number."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["sampling_steps"] is not None:
            found.setdefault(training_of(row["name"]), {})[row["sampling_steps"]] = row
    several = {name: by for name, by in found.items() if len(by) > 1}
    return sorted({steps for by in several.values() for steps in by}), several


def steps_head(columns: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the columns of numbers of steps."""
    return tuple(f"{n} step{'s' if n > 1 else ''}" for n in columns)


STRAIGHTNESS = "straightness (0: straight)"
"""Of a flow: the mean squared difference between its velocity and the straight way, in the head's units of actions."""


def straightness(by: Mapping[int, Mapping[str, Any]]) -> str:
    """Return a flow's straightness, 0 of a straight one, as its training measured it."""
    found = next(iter(by.values())).get("straightness")
    return "–" if found is None else f"{found:.3f}"


def _steps_table(rows: Sequence[Mapping[str, Any]]) -> Content:
    """A table of the policies that were sampled in several numbers of steps."""
    columns, several = by_steps(rows)
    if not several:
        return ()

    def rate(row: Mapping[str, Any] | None) -> str:
        return f"{percent(row['success_rate'])} ({interval(row)})" if row else "–"

    cells = [(name, straightness(by), *(rate(by.get(n)) for n in columns)) for name, by in several.items()]
    head = ("Policy", STRAIGHTNESS.capitalize(), *steps_head(columns))
    return table("Success by sampling steps, with 95 % interval", head, cells, numbers=range(1, len(head)))


def by_condition(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, dict[str, Mapping[str, Any]]]]:
    """Return the policies evaluated with something changed: all that was, in words, and the rows by name and change."""
    found = {
        row["name"]: {condition_name(c["condition"], c["amount"]): c for c in row["conditions"]}
        for row in rows
        if row.get("conditions")
    }
    return list(dict.fromkeys(name for by in found.values() for name in by)), found


def _conditions_table(rows: Sequence[Mapping[str, Any]]) -> Content:
    """A table of the policies that were evaluated with something changed, too."""
    columns, found = by_condition(rows)
    if not found:
        return ()

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return "–"
        pairs = row["against_first"]
        return f"{percent(row['success_rate'])} ({interval(row)})" + (f", {lost_and_gained(pairs)}" if pairs else "")

    cells = [(name, *(cell(by.get(column)) for column in columns)) for name, by in found.items()]
    caption = f"Success under each condition; episodes lost and gained: against {rows[0]['name']}, under the same"
    return table(caption, ("Policy", *columns), cells, numbers=range(1, len(columns) + 1))


def _held_out_table(rows: Sequence[Mapping[str, Any]]) -> Content:
    """A table of the policies that were evaluated on tasks that they did not learn from."""
    new = [(row["name"], row["held_out"]) for row in rows if row.get("held_out")]
    if not new:
        return ()
    head = ("Policy", "Tasks", "Success", "95 % interval", "Solved", f"Against {rows[0]['name']}")
    cells = [
        (
            name,
            task_names(found["tasks"]),
            percent(found["success_rate"]),
            interval(found),
            f"{found['successes']} of {found['n']}",
            lost_and_gained(found["against_first"]),
        )
        for name, found in new
    ]
    return table("Tasks that a policy did not learn from", head, cells, numbers=(2, 4, 5))


def task_names(tasks: Sequence[Sequence[Any]]) -> str:
    """Return suites with the numbers of their tasks, from [suite, number] pairs."""
    suites = dict.fromkeys(suite for suite, _ in tasks)
    return "; ".join(f"{suite} {', '.join(str(i) for s, i in tasks if s == suite)}" for suite in suites)


def lost_and_gained(pairs: Mapping[str, Any] | None) -> str:
    """Return how many episodes a policy loses and gains against another."""
    return f"-{pairs['lost']} +{pairs['gained']} of {pairs['pairs']}" if pairs else "–"


def _row(run: Run) -> dict[str, Any]:
    agent = run.results["protocol"].get("agent", {})
    built = agent.get("architecture", {})
    training = run.training or {}
    head = built.get("head")
    as_trained = agent.get("sampling_steps") == built.get("sampling_steps", agent.get("sampling_steps"))
    return {
        "name": run.name,
        "head": f"{head}, {built['velocity']}" if head in HEADS_IN_STEPS else head or agent.get("name"),
        "sampling_steps": agent["sampling_steps"] if head in HEADS_IN_STEPS else None,
        **_rates(run.results),
        "val_action_mse": training.get("val_action_mse") if as_trained else None,
        "straightness": training.get("val_straightness"),
        "training_s": training.get("wall_s"),
        "parameters": training.get("trainable_parameters", {}).get("total"),
        "policy_ms": run.results["timings"]["policy_ms"]["p50"],
    }


def _rates(results: Mapping[str, Any]) -> dict[str, Any]:
    return {key: results[key] for key in ("n", "successes", "success_rate", "wilson_low", "wilson_high")}


def _cells(row: Mapping[str, Any]) -> list[Content]:
    def shown(name: str, form: str) -> str:
        return "–" if row[name] is None else form.format(row[name])

    pairs = row["against_first"]
    return [
        row["name"],
        percent(row["success_rate"]),
        interval_bar(row["success_rate"], row["wilson_low"], row["wilson_high"]),
        interval(row),
        f"{row['successes']} of {row['n']}",
        lost_and_gained(pairs),
        f"{pairs['p_value']:.2g}" if pairs else "–",
        str(row["head"]),
        shown("sampling_steps", "{}"),
        shown("val_action_mse", "{:.4f}"),
        "–" if row["training_s"] is None else duration(row["training_s"]),
        "–" if row["parameters"] is None else f"{row['parameters'] / 1e6:.1f} M",
        shown("policy_ms", "{:.0f} ms"),
    ]
