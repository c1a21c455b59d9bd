"""The model card: README.md of a bundle, in the form that the Hugging Face hub reads, written from what is recorded.

It is for people. Nothing reads it, and no digest of the bundle counts it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from open_clip.pretrained import get_pretrained_cfg

from pipeline.encode import own
from pipeline.encode.settings import SEEDED
from pipeline.encode.weights import has_name
from pipeline.errors import DataError
from pipeline.inference.describe import AS_IN_DATA, action_ranges, describe, own_data
from pipeline.libero.demos.download import REPOSITORY
from pipeline.policy.bundle import PolicySpec

HEADS = {
    "flow": "a rectified flow",
    "diffusion": "a denoising diffusion",
    "l1": "an L1 regression",
    "l2": "an L2 regression",
    "cvae": "a conditional variational autoencoder",
    "tokens": "discretised actions",
}
SOURCES = {
    "official": "LIBERO's own, collected by people",
    "scripted": "recorded in the simulator by a scripted expert that sees the simulator's state",
    "path": "files of the one who trained it, in LIBERO's layout",
    "own": "of another robot than LIBERO's, from a data set of the one who trained it",
}
SHOWN = 50  # instructions, at most
USE = """```python
from pipeline.inference.policy import Policy

policy = Policy.load("{place}")
policy.reset(seed=0)
actions = policy.act({{{inputs}}}, "{instruction}")  # ({horizon}, {action_dim}): carry out the first {n_action_steps}
```"""
UNKNOWN = (
    "Not in this card, which training wrote. `python -m stages.push` writes one with the results of "
    "`stages.eval_libero`, to a file or to the hub."
)
LIMITS = (
    "It was trained and measured in simulation. On a robot: clamp speeds and the workspace, and keep a stop at hand.",
    "It acts on what it learnt: these cameras where they stood in training, this arm, these units and frames.",
    "Instructions that it did not learn are encoded like any other; whether it follows them is not said by that.",
    "Actions are clipped to [-1, 1]. Nothing else about them is guaranteed.",
)
LIMITS_OF_OWN = (
    "It was trained on recordings alone: no success rate is known. On the robot: clamp speeds and the workspace, and "
    "keep a stop at hand.",
    "It acts on what it learnt: these cameras where they stood in training, this robot, the units of its data.",
    LIMITS[2],
    "Each component of an action is clipped to the range that it has in the demonstrations. Nothing else about actions "
    "is guaranteed.",
)


def card(spec: PolicySpec, results: Mapping[str, Any] | None = None, place: str = "runs/flow/policy") -> str:
    """Return the text of a bundle's model card.

    Args:
        results: eval.json of this policy; None where it has not been evaluated.
        place: from which a reader loads the policy.
    """
    name = place.removeprefix("hf://").strip("/")
    parts = [
        f"# {name}",
        _about(spec),
        "## Use",
        _use(spec, place),
        "## Inputs and output",
        _interface(spec),
        "## Training",
        _training(spec),
        "## Results",
        _results(results) if results else UNKNOWN,
        "## Limits",
        _lines([*(LIMITS if own_data(spec) is None else LIMITS_OF_OWN), *_particular_limits(spec)]),
    ]
    return f"---\n{_front_matter(spec, results, name)}---\n\n" + "\n\n".join(parts) + "\n"


def results_of(folder: Path, spec: PolicySpec, weights_sha256: str) -> dict[str, Any]:
    """Return eval.json of a directory of results.

    Raises:
        DataError: there is none, or it is of another policy than the one whose `bundle.weights_digest` is given, or of
            the same in other sampling steps.
    """
    file = folder / "eval.json"
    try:
        found = json.loads(file.read_text())
        agent = found["protocol"]["agent"]
        measured, steps = agent.get("weights_sha256"), agent.get("sampling_steps")
    except FileNotFoundError:
        raise DataError(f"{file}: not found. Evaluate first: python -m stages.eval_libero --out {folder}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: no result of stages.eval_libero ({error}). Evaluate again") from None
    if measured != weights_sha256:
        raise DataError(
            f"{file}: is of a policy with weights {measured}, and the bundle has {weights_sha256}. Evaluate this one: "
            "python -m stages.eval_libero"
        )
    if steps not in (None, own := spec.architecture.sampling_steps):
        raise DataError(
            f"{file}: was measured with {steps} sampling steps, and whoever loads the bundle gets its own {own}. "
            "Evaluate it with eval_libero.sampling_steps null, or train with policy.sampling_steps as measured"
        )
    return dict(found)


def _front_matter(spec: PolicySpec, results: Mapping[str, Any] | None, name: str) -> str:
    benchmark = ["libero", *spec.data.get("tasks", {})] if own_data(spec) is None else []
    source = spec.recipe.get("demonstrations", {}).get("source")
    front: dict[str, Any] = {"license": "mit"} if source == "scripted" else {}  # of others' data it is theirs to say
    front |= {
        "library_name": "vla-flow",
        "pipeline_tag": "robotics",
        "language": ["en"],
        "tags": ["robotics", "vision-language-action", "imitation-learning", spec.architecture.head, *benchmark],
    }
    if source == "official":
        front["datasets"] = [REPOSITORY]
    if encoder := _tag(spec).get("hf_hub"):
        front["base_model"] = encoder.rpartition("/")[0]
    if results:
        rates = [_index_entry(row) for row in results["per_suite"] if row["n"]]
        front["model-index"] = [{"name": name, "results": rates}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _index_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    interval = f"95 % interval {_percent(row['wilson_low'])} to {_percent(row['wilson_high'])}, n = {row['n']}"
    metric = {"type": "success_rate", "name": f"success rate ({interval})", "value": round(row["success_rate"], 4)}
    return {
        "task": {"type": "robotics"},
        "dataset": {"name": f"LIBERO {row['suite']}", "type": row["suite"]},
        "metrics": [metric],
    }


def _about(spec: PolicySpec) -> str:
    arch, encoder = spec.architecture, spec.encoder
    sees = "patch tokens" if arch.patches else "pooled features"
    tuned = "" if spec.tune == "none" else f", its image tower trained with the policy ({spec.tune})"
    frozen = "a frozen" if spec.tune == "none" else "a"
    weights = f"random weights of seed {encoder.get('seed')}" if encoder.get("pretrained") == SEEDED else None
    robot = "LIBERO's simulated Franka Panda" if own_data(spec) is None else "the robot whose data it was trained on"
    signals = "proprioception and " if arch.proprio else ""
    return (
        f"A vision-language-action policy for {robot}: {HEADS[arch.head]} head on {sees} of "
        f"{frozen} CLIP ({encoder.get('model')}, {weights or encoder.get('pretrained')}){tuned}. From "
        f"{_count(len(arch.cameras), 'camera')}, {signals}an instruction it gives the next {arch.horizon} "
        "actions."
    )


def _use(spec: PolicySpec, place: str) -> str:
    arch = spec.architecture
    inputs = ", ".join(f'"{name}": ...' for name in (*arch.cameras, *arch.proprio))
    instruction = spec.instructions[0] if spec.instructions else "what to do"
    return USE.format(
        place=place,
        inputs=inputs,
        instruction=instruction,
        horizon=arch.horizon,
        action_dim=arch.action_dim,
        n_action_steps=arch.n_action_steps,
    )


def _interface(spec: PolicySpec) -> str:
    told = describe(spec)
    is_own = own_data(spec) is not None
    columns = ("shape", "dtype", "unit", "frame", "sign", *(["key"] if is_own else []))
    entries = {**told["inputs"], **told["outputs"]}
    rows = [[f"`{name}`", *(_cell(entry[column]) for column in columns)] for name, entry in entries.items()]
    notes = [f"Images of any size are {each['resized']}." for each in told["inputs"].values() if "resized" in each][:1]
    action, rate = told["outputs"]["actions"], told["control_hz"]
    names = [
        f"{name} (from {low:.4g} to {high:.4g})" if is_own else name
        for name, (low, high) in zip(action["names"], action_ranges(action), strict=True)
    ]
    often = f"one for each step of the data, {AS_IN_DATA}" if rate is None else f"{rate:g} times a second"
    notes.append(f"Components of an action: {', '.join(names)}, {often}.")
    if spec.architecture.n_obs_steps > 1:
        seen = told["history"]
        notes.append(f"It sees {seen['n_obs_steps']} observations, {seen['control_steps_apart']} control steps apart.")
    return f"{_table(['', *columns], rows)}\n\n{' '.join(notes)}"


def _training(spec: PolicySpec) -> str:
    recipe, demos = spec.recipe, spec.recipe.get("demonstrations", {})
    settings = recipe.get("train_flow", {})
    tasks = spec.data.get("tasks", {})
    known = ("batch_size", "epochs", "learning_rate", "seed", "precision")
    lines = []
    if demos:
        where = SOURCES.get(demos["source"], demos["source"])
        lines.append(
            f"Demonstrations: {demos['learnt']} ({demos['steps']:,} steps), {demos['validation']} more for validation: "
            f"{where}."
        )
    lines += [
        f"Tasks of {suite}: {'all' if ids is None else ', '.join(map(str, ids))}." for suite, ids in tasks.items()
    ]
    if settings:
        lines.append(f"Settings: {', '.join(f'{name} {settings[name]}' for name in known if name in settings)}.")
    if machine := recipe.get("machine"):
        lines.append(f"Machine: {machine['name']} ({machine['device']}, {_count(machine['cores'], 'CPU core')}).")
    if commit := spec.provenance.get("git"):
        lines.append(f"Code: commit {commit}.")
    if spec.instructions:
        shown = [f"“{text}”" for text in spec.instructions[:SHOWN]]
        rest = len(spec.instructions) - len(shown)
        lines.append(f"Instructions: {', '.join(shown)}{f' and {rest} more' if rest else ''}.")
    return _lines(lines) if lines else "Not recorded."


def _results(results: Mapping[str, Any]) -> str:
    rows = [[row["suite"], *_rate(row)] for row in results["per_suite"]]
    rows += [[f"{row['condition']}, against {row['against']}", *_rate(row)] for row in results.get("conditions") or ()]
    if held_out := results.get("held_out"):
        rows.append(["tasks that it did not learn from", *_rate(held_out)])
    agent, sim = results["protocol"]["agent"], results["protocol"].get("sim", {})
    how = f"{agent['n_action_steps']} actions of a chunk carried out, rendering {sim.get('render')}"
    demonstrated = results.get("init_states_demonstrated")
    seen = "" if demonstrated is None else f" Episodes from initial states of its demonstrations: {demonstrated}."
    return (
        f"{_table(['', 'success rate', 'successes', 'n', '95 % interval (Wilson)', 'errors'], rows)}\n\n"
        f"In LIBERO's simulator: {how}. A row of a condition is the same policy with one thing changed.{seen} Episodes "
        "that ended by an error are not in n."
    )


def _rate(row: Mapping[str, Any]) -> list[str]:
    if not row["n"]:
        return ["–", "0", "0", "–", str(row.get("errors", 0))]
    interval = f"{_percent(row['wilson_low'])} to {_percent(row['wilson_high'])}"
    rate = _percent(row["success_rate"])
    return [rate, str(row["successes"]), str(row["n"]), interval, str(row.get("errors", 0))]


def _particular_limits(spec: PolicySpec) -> list[str]:
    found = []
    if (pretrained := spec.encoder.get("pretrained")) == SEEDED:
        found.append("Its encoder has random weights: it knows no objects but those of its demonstrations.")
    elif (model := str(spec.encoder.get("model")), pretrained) == (own.MODEL, own.TAG):
        found.append("Its encoder is the project's own CLIP, which knows LIBERO's scenes and nothing else.")
    elif pretrained and not has_name(model, str(pretrained)):
        found.append(
            f"Its encoder's weights are a file that is not in the bundle ({pretrained}, SHA-256 of the weights "
            f"{spec.encoder.get('weights_sha256')}): `Policy.load(..., encoder_weights=PATH)`."
        )
    if render := (spec.data.get("sim") or {}).get("render"):
        found.append(f"The pictures that it learnt from were rendered in quality “{render}”.")
    return found


def _tag(spec: PolicySpec) -> Mapping[str, Any]:
    """Return what open_clip knows of the encoder's weights; nothing of a file's or a seed's."""
    return get_pretrained_cfg(spec.encoder.get("model", ""), spec.encoder.get("pretrained", "")) or {}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    return f"({', '.join(map(str, value))})" if isinstance(value, list) else str(value)


def _lines(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
