"""Tables of one training and its evaluation: eval.json, train.json, and the committed files that hold both."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.table import NONE, Code, Rate, Table, number
from pipeline.rollout.results import EpisodeRecord
from pipeline.rollout.settings import amount_text, condition_parts

Tree = Mapping[str, Any]
SUCCESS = "success, 95 % interval"
ERRORS = (("loss", "loss"), ("action_mse", "action MSE"), ("action_mae", "action MAE"))

# The reference project's expected curve of overfitting one LIBERO-Spatial task (its project summary), 1-3 h on two
# RTX 6000 Ada: epoch, loss, action MSE, action MAE.
REFERENCE_CURVE = (
    (0, 1.0, 0.5, 0.4),
    (50, 0.3, 0.15, 0.2),
    (100, 0.1, 0.05, 0.1),
    (200, 0.03, 0.01, 0.05),
    (500, 0.005, 0.001, 0.01),
)


def tasks(result: Tree) -> Table:
    """Success task by task."""
    rows = [
        (
            f"{r['suite']} {r['task']}",
            Rate(r),
            str(r["policy_errors"]),
            str(r["errors"]),
            number(r["mean_steps_to_success"], "{:.0f}"),
            r["language"],
        )
        for r in result["per_task"]
    ]
    head = ("task", SUCCESS, "policy errors", "errors", "steps to success", "instruction")
    return Table(
        "Success per task; a policy's errors are failures, others' errors are in no rate; steps: the mean",
        head,
        rows,
        (2, 3, 4),
    )


def conditions(result: Tree) -> Table:
    """The plain evaluation, and those with something changed; no row where nothing was."""
    changed = result.get("conditions") or ()
    rows: list[tuple[str | Rate, ...]] = [("nothing", Rate(result), NONE)] if changed else []
    for row in changed:
        change = pairs(row if "lost" in row else None)
        if (against := row.get("against", "plain")) != "plain":
            change += f"; against {condition_name(against, row['amount'])}"
        rows.append((condition_name(row["condition"], row["amount"]), Rate(row), change))
    caption = "The first init states of each task again, with something changed; p: McNemar's, of the same states"
    return Table(caption, ("what is changed", SUCCESS, "episodes that end otherwise"), rows)


def condition_name(condition: str, amount: float | None) -> str:
    """Return what is changed, in words: displaced and blank cameras, 0.08."""
    name = " and ".join(condition_parts(condition)).replace("_", " ")
    return name if amount is None else f"{name}, {amount_text(amount)}"


def pairs(row: Tree | None) -> str:
    """Return how many of the paired episodes were lost and gained, and McNemar's p."""
    if not row:
        return NONE
    return f"{row['lost']} lost, {row['gained']} gained of {row['pairs']}, p = {row['p_value']:.2g}"


def episodes(records: Sequence[EpisodeRecord]) -> Table:
    """Every episode, failures first."""
    rows = [
        (
            f"{r.suite} {r.task}, episode {r.episode}",
            str(r.init_row),
            r.outcome,
            str(r.steps),
            f"{r.error_kind}: {r.error}" if r.error else NONE,
        )
        for r in failures_first(records)
    ]
    return Table("Episodes, failures first", ("episode", "init state", "outcome", "steps", "error"), rows, (1, 3))


def failures_first(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """Return the episodes in the order in which one wants to look at them."""
    order = {"failure": 0, "policy_error": 1, "error": 2, "success": 3}
    return sorted(records, key=lambda r: (order[r.outcome], r.key))


def recipe(made: Tree) -> Table:
    """What a policy was trained by and on: `recipe` of its train.json or policy.json."""
    train = made["train_flow"]
    machine, names = made["machine"], ("learning_rate", "batch_size", "epochs", "seed", "action", "precision")
    rows = [(name.replace("_", " "), f"{train[name]}") for name in names]
    rows += [
        ("feature noise", f"{made['feature_noise']:g}"),
        ("demonstrations", demonstrations(made)),
        ("encoder", encoder(made["encoder"])),
        ("machine", f"{machine['name']}, {machine['cores']} CPU cores"),
    ]
    rows += [("date", made["date"])] if "date" in made else []
    return Table("What the policy was trained by and on", ("setting", "value"), rows)


def demonstrations(made: Tree) -> str:
    """Return in words what was learnt from."""
    d = made["demonstrations"]
    return f"{d['learnt']} ({d['source']}, {d['steps']:,} steps), {d['validation']} more for validation"


def encoder(identity: Tree) -> str:
    """Return in words which encoder gave the features."""
    weights = "random weights" if identity["pretrained"] == "seeded" else identity["pretrained"]
    return f"{identity['model']}, {weights}, {identity['precision']}"


def expert(figures: Tree) -> Table:
    """The scripted expert task by task, from docs/results/expert.json."""
    rows = [
        (str(r["task"]), r["language"], f"{r['successes']}/{r['n']}", number(r["mean_steps"], "{:.1f}"))
        for r in figures["per_task"]
    ]
    return Table("The scripted expert", ("task", "instruction", "solved", "mean steps"), rows, (2, 3))


def overfit(figures: Tree) -> Table:
    """One task to near zero error, the reference's expected curve beside ours, on the training split."""
    history, rows = figures["epochs"], []
    for epoch, *expected in REFERENCE_CURVE:
        cells: list[str] = []
        for value, (key, _) in zip(expected, ERRORS, strict=True):
            ours = [e[f"train_{key}"] for e in history if e["epoch"] <= epoch and e.get(f"train_{key}") is not None]
            reached = ours and history[-1]["epoch"] + 1 >= epoch
            cells += [f"{value:g}", f"{ours[-1]:.2g}" if reached else NONE]
        rows.append((str(epoch), *cells))
    head = ("epoch", *(f"{name}, {who}" for _, name in ERRORS for who in ("reference", "ours")))
    return Table("Training split, at the reference's epochs", head, rows, range(1, 7))


def settings(result: Tree) -> Table:
    """The protocol, as used."""
    protocol = result["protocol"]
    plain = {k: v for k, v in protocol.items() if not isinstance(v, Mapping | list) and v is not None}
    rows = [(name.replace("_", " "), str(value)) for name, value in plain.items() if name != "max_steps"]
    limits = {f"{t['max_steps']} ({t['suite']})": None for t in protocol.get("tasks", ())}
    rows += [("control steps, at most", ", ".join(limits))] if limits else []
    rows += [(f"sim: {name.replace('_', ' ')}", str(value)) for name, value in protocol.get("sim", {}).items()]
    rows += [("drawn by", f"{used['gl_used']}, {used['renderer']}") for used in protocol.get("simulators", ())]
    made = result.get("provenance", {})
    rows += [("code", str(made.get("git"))), ("command", Code(command(made)))]
    return Table("Protocol of the evaluation", ("setting", "value"), rows)


def command(made: Tree, *more: str) -> str:
    """Return the command that made a result, from its provenance, with `more` arguments."""
    program, *arguments = made.get("argv") or ["?"]
    if program == "vla-flow":
        return shlex.join((program, *arguments, *more))
    return shlex.join(("python", "-m", f"stages.{program.removesuffix('.py')}", *arguments, *more))
