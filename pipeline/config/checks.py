"""What settings have to satisfy beyond their types: ranges, and what fits together."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config.params import Params
from pipeline.errors import ConfigError, did_you_mean
from pipeline.libero.depth import is_depth
from pipeline.policy.settings import NOISE_LEVELS
from pipeline.rollout.settings import CONDITIONS, condition_parts

Require = Callable[[bool, str], None]
# Settings that must be positive, where they are not null.
POSITIVE = (
    "sim.image_size",
    "demos.episodes",
    "embed.views",
    "embed.batch_size",
    "embed.shard_rows",
    "embed.chunk_rows",
    "policy.history",
    "policy.width",
    "policy.token_width",
    "policy.velocity_width",
    "policy.velocity_layers",
    "policy.time_dim",
    "policy.sampling_steps",
    "eval_libero.condition_episodes",
    "eval_libero.execute",
    "train_flow.teacher_steps",
    "train_flow.epochs",
    "train_flow.batch_size",
    "train_flow.microbatch_size",
    "train_flow.learning_rate",
    "train_flow.clip_norm",
    "train_flow.metrics_every_epochs",
    "train_flow.metrics_rows",
    "train_flow.checkpoint_every_epochs",
    "train_flow.memory_mib",
    "train_flow.encoder.lora_rank",
    "eval_libero.episodes",
    "eval_libero.max_steps",
    "eval_libero.timeout_s",
    "eval_libero.sampling_steps",
    "compute.workers",
    "compute.threads_per_worker",
)
NOT_NEGATIVE = (
    "sim.settle_steps",
    "demos.first_init_state",
    "demos.displaced",
    "demos.noise_sigma",
    "embed.brightness",
    "embed.contrast",
    "policy.feature_noise",
    "train_flow.keyframe_weight",
    "train_flow.warmup_steps",
    "train_flow.weight_decay",
    "eval_libero.first_init_state",
    "eval_libero.videos_per_task",
)


def check_values(p: Params, origin: str) -> None:
    """Raise ConfigError for values that are each well typed but cannot work; `origin` names the file."""

    def require(ok: bool, text: str) -> None:
        if not ok:
            raise ConfigError(f"{origin}: {text}")

    _check_data(p, require)
    require(p.embed.obs_shift in (0, 1), f"embed.obs_shift is {p.embed.obs_shift}; it can be 0 or 1")
    for name in POSITIVE:
        value = _setting(p, name)
        require(value is None or value > 0, f"{name} is {value}; it must be positive")
    for name in NOT_NEGATIVE:
        require(_setting(p, name) >= 0, f"{name} is {_setting(p, name)}; it must not be negative")
    require(
        p.embed.shard_rows % p.embed.chunk_rows == 0,
        f"embed.shard_rows {p.embed.shard_rows} is not a multiple of embed.chunk_rows {p.embed.chunk_rows}",
    )
    _check_policy(p, require)
    _check_training(p, require)
    _check_demos(p, require)
    _check_conditions(p, require)
    _check_comparison(p, require)
    scheduler = p.compute.scheduler
    require(
        scheduler in ("serial", "local") or scheduler.startswith(("tcp://", "tls://")),
        f"compute.scheduler is {scheduler!r}; use serial, local, tcp://host:port or tls://host:port",
    )
    require(
        scheduler.startswith("tls://") == (p.compute.tls is not None),
        f"compute.tls is {'null' if p.compute.tls is None else 'set'}, but compute.scheduler is {scheduler!r}; set "
        "both (scheduler: tls://host:port, tls: {ca, cert, key}) or none",
    )


def _check_data(p: Params, require: Require) -> None:
    require(len(p.data.suites) > 0, "data.suites is empty; name at least one suite")
    require(len(set(p.data.suites)) == len(p.data.suites), f"data.suites {list(p.data.suites)} names one twice")
    for suite, ids in p.data.tasks.items():
        require(ids is None or len(ids) > 0, f"data.tasks.{suite} is empty; name tasks, or write null for all")
        require(ids is None or len(set(ids)) == len(ids), f"data.tasks.{suite} {list(ids or ())} names a task twice")
    for suite in p.data.tasks:
        require(suite in p.data.suites, f"data.tasks has {suite!r}, which is not in data.suites {list(p.data.suites)}")
    for suite in p.data.suites:
        require(suite in p.data.tasks, f"data.tasks lacks {suite!r} of data.suites; write null for all its tasks")


def _check_policy(p: Params, require: Require) -> None:
    for camera in p.policy.cameras:
        require(
            camera in p.embed.cameras,
            f"policy.cameras has {camera!r}, but embed.cameras is {list(p.embed.cameras)}: add it there",
        )
    require(len(p.policy.cameras) > 0, "policy.cameras is empty; name at least one camera")
    require(
        p.policy.features != "grid" or p.embed.grid is not None,
        "policy.features is grid, but embed.grid is null: set embed.grid.size and .layer",
    )
    require(p.policy.time_dim % 2 == 0, f"policy.time_dim is {p.policy.time_dim}; it must be even (sines and cosines)")
    for name in ("policy.sampling_steps", "eval_libero.sampling_steps"):
        steps = _setting(p, name)
        require(
            p.policy.head != "diffusion" or steps is None or NOISE_LEVELS % steps == 0,
            f"{name} is {steps}; policy.head diffusion takes a divisor of {NOISE_LEVELS}, its levels of noise",
        )
    require(
        p.policy.head not in ("diffusion", "tokens") or not p.policy.standardise_actions,
        f"policy.head {p.policy.head} clips or bins actions in [-1, 1]: set policy.standardise_actions: false",
    )
    require(
        1 <= p.policy.execute <= p.policy.horizon,
        f"policy.execute {p.policy.execute} is not between 1 and policy.horizon {p.policy.horizon}",
    )


def _check_training(p: Params, require: Require) -> None:
    require(
        p.train_flow.teacher is None or (p.policy.head, p.train_flow.encoder.tune) == ("flow", "none"),
        f"train_flow.teacher {p.train_flow.teacher} needs policy.head flow, which is {p.policy.head}, and "
        f"train_flow.encoder.tune none, which is {p.train_flow.encoder.tune}",
    )
    require(
        p.policy.features == "pooled" or p.train_flow.encoder.tune == "none",
        f"train_flow.encoder.tune is {p.train_flow.encoder.tune}, which gives pooled features: set policy.features so",
    )
    require(
        not p.policy.augmented_views or p.embed.views > 1,
        f"policy.augmented_views is true, but embed.views is {p.embed.views}: set it to 2 or more",
    )
    require(
        not p.policy.augmented_views or p.train_flow.encoder.tune == "none",
        f"policy.augmented_views draws from the store's features, but train_flow.encoder.tune is "
        f"{p.train_flow.encoder.tune}, which reads frames: set policy.augmented_views to false, or the other to none",
    )
    require(
        p.policy.history == 1 or p.train_flow.data_mode != "streaming",
        f"policy.history is {p.policy.history}, but streamed rows come without those before them: set "
        "train_flow.data_mode to resident",
    )
    for suite, held_out in p.train_flow.held_out_tasks.items():
        where = f"train_flow.held_out_tasks.{suite} {list(held_out)}"
        require(suite in p.data.tasks, f"{where}: data.suites is {list(p.data.suites)}")
        ids = p.data.tasks[suite]
        require(ids is None or {*held_out} < {*ids}, f"{where} must be some, not all, of data.tasks {list(ids or ())}")
    require(0 <= p.train_flow.val_fraction < 1, f"train_flow.val_fraction is {p.train_flow.val_fraction}; use [0, 1)")
    require(0 <= p.train_flow.ema_decay < 1, f"train_flow.ema_decay is {p.train_flow.ema_decay}; use [0, 1)")


def _check_demos(p: Params, require: Require) -> None:
    share = p.demos.displaced_share
    for name in ("displaced_share", "second_tries", "variety"):
        value = getattr(p.demos, name)
        require(0 <= value <= 1, f"demos.{name} is {value}; use 0 to 1")
    require(
        (share > 0) == (p.demos.displaced > 0),
        f"demos.displaced is {p.demos.displaced} and displaced_share {share}: set both, or neither",
    )
    require(p.demos.source != "path" or bool(p.demos.path), "demos.source is 'path' but demos.path is null; set it")
    require(
        not p.demos.path or not Path(p.demos.path).expanduser().resolve().is_relative_to(Path("data/demos").resolve()),
        f"demos.path {p.demos.path} is where the stage writes, which would replace your files. Move them elsewhere",
    )
    require(
        p.train_flow.action == "action" or p.demos.source != "official",
        "train_flow.action is 'expert_action', which only scripted demonstrations have; use 'action'",
    )
    depth = [camera for camera in p.embed.cameras if is_depth(camera)]
    require(
        not depth or p.demos.depth,
        f"embed.cameras has {', '.join(depth)}, but demos.depth is false: set it to true to have depth recorded, or, "
        "with demos.source path, if your files have it",
    )
    require(
        p.demos.source != "official" or not (p.demos.depth or "ee_wrench" in p.policy.proprio),
        "LIBERO's own demonstrations have neither depth nor ee_wrench: set demos.depth to false and take ee_wrench out "
        "of policy.proprio, or use demos=scripted",
    )
    require(
        p.demos.source != "official" or (p.sim.render, p.sim.image_size) == ("full", 128),
        f"demos.source is 'official', whose frames LIBERO drew in full, at 128 pixels, but sim draws {p.sim.render}, "
        f"at {p.sim.image_size}: the policy would see other pictures. Use sim=full",
    )


def _check_conditions(p: Params, require: Require) -> None:
    for name, amount in p.eval_libero.conditions.items():
        parts = condition_parts(name)
        for part in parts:
            known = part in CONDITIONS and parts.count(part) == 1
            require(known, f"eval_libero.conditions has {name!r}.{did_you_mean(part, CONDITIONS)}")
        require(
            not {"blank_cameras", "other_episode"} <= {*parts},
            f"eval_libero.conditions has {name!r}: with all cameras blanked, nothing of another episode is seen",
        )
        numbers = [needs for part in parts if (needs := CONDITIONS[part])]
        require(len(numbers) < 2, f"eval_libero.conditions has {name!r}, and one number for two things")
        needs = numbers[0] if numbers else None
        require(
            (amount is not None and amount > 0) if needs else amount is None,
            f"eval_libero.conditions.{name} is {amount}; " + (f"give {needs}" if needs else "it takes no number: null"),
        )


def _check_comparison(p: Params, require: Require) -> None:
    cfg = p.comparison
    for name in cfg.policies:
        simple = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None
        require(simple, f"comparison.policies has {name!r}; use letters, digits and _: it names directories and stages")
    require(not cfg.policies or len(cfg.seeds) > 0, "comparison.seeds is empty: no policy would be trained")
    for name in cfg.by_steps:
        known = name in cfg.policies
        require(known, f"comparison.by_steps has {name!r}, no policy.{did_you_mean(name, cfg.policies)}")
    for run in cfg.against:
        known = run in cfg.runs()
        require(known, f"comparison.against has {run!r}, no policy-seed.{did_you_mean(run, cfg.runs())}")
    steps = all(n > 0 for n in cfg.sampling_steps)
    require(steps, f"comparison.sampling_steps {list(cfg.sampling_steps)} must be positive")


def _setting(p: Params, name: str) -> Any:
    value: Any = p
    for part in name.split("."):
        value = getattr(value, part)
    return value
