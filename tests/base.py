"""Settings for tests: the simplest policy there is, whatever the quickstart has."""

from functools import cache
from typing import Any

import yaml

from pipeline.config import Params, from_dict
from pipeline.config.compose import compose
from pipeline.policy.network import Architecture
from tests.imports import ROOT

PLAIN = (
    "demos.episodes=30",
    "demos.first_init_state=0",
    "demos.recovery_share=0.0",
    "embed=seeded",
    "embed.encoder.precision=fp32",
    "embed.grid=null",
    "policy=chunk",
    "train_flow.keyframe_weight=0.0",
    "train_flow.precision='no'",
    "train_flow.epochs=140",
    "train_flow.val_fraction=0.1",
    "eval_libero.first_init_state=30",
    "eval_libero.condition_episodes=null",
)


@cache
def _text() -> str:
    return compose(PLAIN, ROOT / "configs")


def tree() -> dict[str, Any]:
    """Return a params.yaml as nested dicts: pooled features of a seeded ViT-S-32, two cameras, an MLP, ten steps."""
    return yaml.safe_load(_text())


def params() -> Params:
    """Return it loaded."""
    return from_dict(tree())


def architecture(**changes: Any) -> Architecture:
    """Return a small network of the default head on pooled features, but for `changes`."""
    values: dict[str, Any] = {"cameras": ("agentview",), "proprio": ("joint_pos",), "features": "pooled"}
    values |= {"patches": None, "image_dim": 8, "text_dim": 4, "n_obs_steps": 1}
    values |= {"condition_dim": 32, "token_width": 8}
    values |= {"head": "flow", "head_network": "mlp", "head_width": 64, "head_layers": 2, "time_dim": 16}
    values |= {"horizon": 2, "n_action_steps": 2, "sampling_steps": 10}
    values |= {"standardise_actions": True, "feature_noise": 0.0, "augmented_views": False}
    return Architecture(**{**values, **changes})
