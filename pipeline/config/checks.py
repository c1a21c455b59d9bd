"""What settings have to satisfy together. What one has to satisfy alone stands beside it, in its room's settings.py."""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from pipeline.config.params import Params
from pipeline.encode.settings import grid_misfit
from pipeline.errors import did_you_mean
from pipeline.libero.depth import is_depth
from pipeline.libero.settings import SUITE_SIZES, Camera
from pipeline.policy.settings import NOISE_LEVELS, Proprio
from pipeline.rollout.settings import CONDITIONS, Amount

NAME = r"[A-Za-z][A-Za-z0-9_]*"
"""Of what names directories, arrays or parts of a network."""
TAKEN = ("action", "actions", "expert_action", "noise", "prompt", "text")
"""What stands beside cameras and states in stores, exports and messages."""


def contradictions(p: Params) -> Iterator[str]:
    """Yield what cannot work, with the remedy."""
    yield from _data(p)
    yield from _embed(p)
    yield from _policy(p)
    yield from _training(p)
    yield from _pretraining(p)
    yield from _demos(p)
    for name, amount in p.eval_libero.conditions.items():
        yield from _condition(name, amount)
    yield from _comparison(p)
    yield from _compute(p)


def _pretraining(p: Params) -> Iterator[str]:
    if p.pretrain_clip.lock_image and p.pretrain_clip.pretrained is None:
        yield (
            "pretrain_clip.lock_image is true, but pretrain_clip.pretrained is null: the image tower would stay "
            "random. Name a directory with weights"
        )


def _data(p: Params) -> Iterator[str]:
    suites, own = list(p.data.suites), p.demos.source == "own"
    sizes = dict.fromkeys(suites, 0) if own else SUITE_SIZES
    for suite in {*suites} - {*sizes}:
        yield f"data.suites has {suite!r}.{did_you_mean(suite, sizes)}"
        return
    if len({*suites}) < len(suites):
        yield f"data.suites {suites} names one twice"
    for suite in {*suites} - {*p.data.tasks}:
        yield f"data.tasks has no entry {suite!r}: write {suite}: null for all (compose: +data.tasks.{suite}=null)"
    for suite, ids in p.data.tasks.items():
        if suite not in suites:
            if ids is not None:
                yield (
                    f"data.tasks.{suite} is {list(ids)}, but data.suites is {suites}: add the suite there, or take the "
                    f"entry out (compose: ~data.tasks.{suite})"
                )
            continue
        if ids == ():
            yield f"data.tasks.{suite} is empty; name tasks, or write null for all"
        if ids and len({*ids}) < len(ids):
            yield f"data.tasks.{suite} {list(ids)} names a task twice"
        for task in ids or ():
            if task < 0 or (not own and task >= SUITE_SIZES[suite]):
                yield f"data.tasks.{suite} has {task}; ids go from 0" + ("" if own else f" to {SUITE_SIZES[suite] - 1}")
    for suite, held_out in p.train_flow.held_out_tasks.items():
        where = f"train_flow.held_out_tasks.{suite} {list(held_out)}"
        if suite not in suites:
            yield f"{where}: data.suites is {suites}"
            continue
        learnt = p.data.tasks.get(suite) or range(sizes[suite])
        if learnt and not {*held_out} < {*learnt}:
            yield f"{where} must be some, not all, of data.tasks {list(learnt)}"


def _embed(p: Params) -> Iterator[str]:
    if p.embed.shard_rows % p.embed.chunk_rows:
        yield f"embed.shard_rows {p.embed.shard_rows} is not a multiple of embed.chunk_rows {p.embed.chunk_rows}"
    known = p.demos.keys.cameras if p.demos.keys else get_args(Camera)
    for camera in p.demos.keys.cameras if p.demos.keys else ():
        if camera not in p.embed.cameras:
            yield f"demos.keys.cameras has {camera!r}, which nobody uses: add it to embed.cameras, or take it out"
    for camera in p.embed.cameras:
        if camera not in known:
            yield f"embed.cameras has {camera!r}; it can have {', '.join(known)}"
    depth = [camera for camera in p.embed.cameras if is_depth(camera)]
    if depth and not p.demos.depth:
        yield (
            f"embed.cameras has {', '.join(depth)}, but demos.depth is false: set it to true to have depth recorded, "
            "or, with demos.source path, if your files have it"
        )

    grid, model = p.embed.grid, p.embed.encoder.model
    if grid and (side := _patches(model)) and (wrong := grid_misfit(grid.size, model, side)):
        yield wrong


def _patches(model: str) -> int | None:
    """Return the patches along a side of one of open_clip's own vision transformers; None of any other model."""
    package = find_spec("open_clip")  # whose files are read: importing it takes seconds
    folders = package.submodule_search_locations if package else None
    file = Path(folders[0]) / "model_configs" / f"{model}.json" if folders else Path()
    if not file.is_file():
        return None
    vision = json.loads(file.read_text())["vision_cfg"]
    sizes = vision.get("image_size"), vision.get("patch_size")
    return sizes[0] // sizes[1] if all(isinstance(size, int) for size in sizes) else None


def _policy(p: Params) -> Iterator[str]:
    cfg = p.policy
    known = p.demos.keys.cameras if p.demos.keys else get_args(Camera)
    states = p.demos.keys.state if p.demos.keys else get_args(Proprio)
    for name in cfg.proprio:
        if name not in states:
            yield f"policy.proprio has {name!r}; it can have {', '.join(states)}"
    for camera in cfg.cameras:
        if camera not in known:
            yield f"policy.cameras has {camera!r}; it can have {', '.join(known)}"
        elif camera not in p.embed.cameras:
            yield f"policy.cameras has {camera!r}, but embed.cameras is {list(p.embed.cameras)}: add it there"
    if cfg.features == "grid" and p.embed.grid is None:
        yield "policy.features is grid, but embed.grid is null: set embed.grid.size and .layer"
    if cfg.n_action_steps > cfg.horizon:
        yield f"policy.n_action_steps {cfg.n_action_steps} is not between 1 and policy.horizon {cfg.horizon}"
    steps = {"policy": cfg.sampling_steps, "eval_libero": p.eval_libero.sampling_steps or 1}
    for section, n in steps.items():
        if cfg.head == "diffusion" and NOISE_LEVELS % n:
            yield (
                f"{section}.sampling_steps is {n}; policy.head diffusion takes a divisor of {NOISE_LEVELS}, its levels "
                "of noise"
            )
    if cfg.head in ("diffusion", "tokens") and cfg.standardise_actions:
        yield f"policy.head {cfg.head} clips or bins actions in [-1, 1]: set policy.standardise_actions: false"
    if cfg.augmented_views and p.embed.views == 1:
        yield "policy.augmented_views is true, but embed.views is 1: set it to 2 or more"


def _training(p: Params) -> Iterator[str]:
    tune, head = p.train_flow.encoder.tune, p.policy.head
    if p.train_flow.teacher is not None and (head, tune) != ("flow", "none"):
        yield (
            f"train_flow.teacher {p.train_flow.teacher} needs policy.head flow, which is {head}, and "
            f"train_flow.encoder.tune none, which is {tune}"
        )
    if p.policy.features != "pooled" and tune != "none":
        yield f"train_flow.encoder.tune is {tune}, which gives pooled features: set policy.features so"
    if p.policy.augmented_views and tune != "none":
        yield (
            f"policy.augmented_views draws from the store's features, but train_flow.encoder.tune is {tune}, which "
            "reads frames: set policy.augmented_views to false, or the other to none"
        )
    if p.policy.n_obs_steps > 1 and p.train_flow.data_mode == "streaming":
        yield (
            f"policy.n_obs_steps is {p.policy.n_obs_steps}, but streamed rows come without those before them: set "
            "train_flow.data_mode to resident"
        )


def _demos(p: Params) -> Iterator[str]:
    cfg = p.demos
    if (cfg.displaced_share > 0) != (cfg.displaced > 0):
        yield f"demos.displaced is {cfg.displaced} and displaced_share {cfg.displaced_share}: set both, or neither"
    if cfg.source in ("path", "own") and not cfg.path:
        yield f"demos.source is {cfg.source!r} but demos.path is null; set it"
    if (cfg.source == "own") != (cfg.keys is not None):
        yield f"demos.source is {cfg.source!r}, but demos.keys is {'set' if cfg.keys else 'null'}: own data take keys"
    if cfg.path and _within_stage_output(cfg.path):
        yield f"demos.path {cfg.path} is where the stage writes, which would replace your files. Move them elsewhere"
    yield from _own(p)
    if cfg.source != "official":
        return
    if p.train_flow.action != "action":
        yield "train_flow.action is 'expert_action', which only scripted demonstrations have; use 'action'"
    if cfg.depth or "ee_wrench" in p.policy.proprio:
        yield (
            "demos.source is 'official': LIBERO's own have neither depth nor ee_wrench: set demos.depth to false and "
            "take ee_wrench out of policy.proprio, or use demos=scripted"
        )
    if (p.sim.render, p.sim.image_size) != ("full", 128):
        yield (
            f"demos.source is 'official', whose frames LIBERO drew in full, at 128 pixels, but sim draws "
            f"{p.sim.render}, at {p.sim.image_size}: the policy would see other pictures. Use sim=full"
        )


def _own(p: Params) -> Iterator[str]:
    """What data of one's own cannot have."""
    keys, suites = p.demos.keys, p.data.suites
    if p.demos.source != "own" or keys is None:
        return
    if len(suites) > 1 or {*suites} & {*SUITE_SIZES} or not re.fullmatch(NAME, suites[0]):
        yield (
            f"data.suites {list(suites)}: demos.source own takes one name of your own choice, of letters, digits and "
            "_, and none of LIBERO's"
        )
    for section, named in (("cameras", keys.cameras), ("state", keys.state)):
        for name in named:
            where = f"demos.keys.{section} has {name!r}"
            if not re.fullmatch(NAME, name) or name in TAKEN or is_depth(name):
                yield f"{where}; use letters, digits and _, but none of {', '.join(TAKEN)}, and not ..._depth"
            elif _of_torch(name):
                yield f"{where}, which parts of a network cannot be called: torch's own have it. Use {name}_0, say"
    for name in keys.cameras.keys() & keys.state.keys():
        yield f"demos.keys has {name!r} among cameras and among state: an observation has one of a name. Rename one"
    if p.train_flow.action != "action":
        yield "train_flow.action is 'expert_action', which only scripted demonstrations have; use 'action'"
    if p.train_flow.keyframe_weight:
        yield "train_flow.keyframe_weight takes LIBERO's hand and gripper, which your data need not have: set it to 0"


def _of_torch(name: str) -> bool:
    """Return whether torch's modules have an attribute of this name, which none of their parts can have then."""
    from torch import nn  # takes seconds to import; settings for LIBERO do without

    return hasattr(nn.ModuleDict(), name)


def _within_stage_output(path: str) -> bool:
    try:
        return Path(path).expanduser().resolve().is_relative_to(Path("data/demos").resolve())
    except (OSError, RuntimeError, ValueError):  # no such user, a loop of links, a null byte: the stage will say it
        return False


def _condition(name: str, amount: Amount) -> Iterator[str]:
    where, parts = f"eval_libero.conditions has {name!r}", name.split("+")
    wrong = [part for part in parts if part not in CONDITIONS or parts.count(part) > 1]
    if wrong:
        yield f"{where}.{did_you_mean(wrong[0], CONDITIONS)}"
        return
    if {"blank_cameras", "other_episode"} <= {*parts}:
        yield f"{where}: with all cameras blanked, nothing of another episode is seen"
    numbers = [needs for part in parts if (needs := CONDITIONS[part])]
    if len(numbers) > 1:
        yield f"{where}, and one number for two things"
    elif numbers and not (given := _numbers(amount)):
        yield f"eval_libero.conditions.{name} is {amount}; give {numbers[0]}"
    elif numbers and (min(given) <= 0 or len(set(given)) < len(given)):
        yield f"eval_libero.conditions.{name} is {amount}; give {numbers[0]}, each once and above 0"
    elif not numbers and amount is not None:
        yield f"eval_libero.conditions.{name} is {amount}; it takes no number: null"


def _numbers(amount: Amount) -> tuple[float, ...]:
    return amount if isinstance(amount, tuple) else () if amount is None else (amount,)


def _comparison(p: Params) -> Iterator[str]:
    cfg = p.comparison
    for name in cfg.policies:
        if not re.fullmatch(NAME, name):
            yield f"comparison.policies has {name!r}; use letters, digits and _: it names directories and stages"
    if cfg.policies and not cfg.seeds:
        yield "comparison.seeds is empty: no policy would be trained"
    for name in cfg.by_steps:
        if name not in cfg.policies:
            yield f"comparison.by_steps has {name!r}, no policy.{did_you_mean(name, cfg.policies)}"
    for run in cfg.against:
        if run not in cfg.runs():
            yield f"comparison.against has {run!r}, no policy-seed.{did_you_mean(run, cfg.runs())}"


def _compute(p: Params) -> Iterator[str]:
    scheduler, tls = p.compute.scheduler, p.compute.tls
    if scheduler not in ("serial", "local") and not scheduler.startswith(("tcp://", "tls://")):
        yield f"compute.scheduler is {scheduler!r}; use serial, local, tcp://host:port or tls://host:port"
    if scheduler.startswith("tls://") != (tls is not None):
        yield (
            f"compute.tls is {'null' if tls is None else 'set'}, but compute.scheduler is {scheduler!r}; set both "
            "(scheduler: tls://host:port, tls: {ca, cert, key}) or none"
        )
