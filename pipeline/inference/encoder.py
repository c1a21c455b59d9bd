"""The encoder that a policy's features came from: made again from the bundle, and compared with what it names."""

import json
from pathlib import Path
from typing import Any

from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.encode.weights import has_name
from pipeline.errors import AssetError, DataError
from pipeline.libero.depth import DEPTH_ID
from pipeline.policy.bundle import PolicySpec


def make_encoder(spec: PolicySpec, device: str, weights: str | Path | None = None) -> ClipEncoder:
    """Return the encoder that `spec` names, checked to be that very one.

    Args:
        device: of the image tower.
        weights: a file of the encoder's weights, whatever its name; None takes those that the identity names.

    Raises:
        AssetError: the weights were a local file, or cannot be fetched.
        DataError: they are others than those that the policy was trained with.
    """
    named = spec.encoder
    pretrained = str(weights) if weights else str(named["pretrained"])
    if not weights and not has_name(named["model"], pretrained):
        raise AssetError(
            f"the policy's encoder, {named['model']}, was read from a file {pretrained!r} of weights with SHA-256 "
            f"{named['weights_sha256']}, which a bundle does not hold. Name that file: encoder_weights=PATH"
        )
    if weights and not Path(weights).is_file():
        raise AssetError(f"encoder_weights: no file {weights}")
    params = EncoderParams(named["model"], pretrained, named["seed"] or 0, named["precision"])
    encoder = ClipEncoder(params, device, GridParams(**spec.grid) if spec.grid else None)
    check_encoder(spec, encoder.identity, "here", "Name the file of the right weights: encoder_weights=PATH")
    return encoder


def check_encoder(
    spec: PolicySpec,
    identity: dict[str, Any],
    where: str = "in the settings",
    remedy: str = "Set embed.encoder as it was, or embed and train again: dvc repro train_flow",
) -> None:
    """Refuse another encoder than the one whose features the policy was trained on. Raises DataError.

    Weights are known by what they hold: where the SHA-256 is the same, their name may be another.

    Args:
        identity: ClipEncoder.identity, or a part of it.
        where: this identity is found.
        remedy: what to do about it.
    """
    mine, theirs = json.loads(json.dumps(identity)), spec.encoder
    names = ("pretrained", "seed") if mine.get("weights_sha256", "") == theirs.get("weights_sha256") else ()
    differing = [k for k in sorted(mine) if k not in names and mine[k] != theirs.get(k)]
    if differing:
        sides = "; ".join(f"{k}: {theirs.get(k)!r} in the policy, {mine[k]!r} {where}" for k in differing)
        raise DataError(f"the policy was trained on another encoder's features ({sides}). {remedy}")


def check_transform(spec: PolicySpec) -> None:
    """Refuse a policy whose images were made another way than this code makes them. Raises DataError."""
    if spec.transform != TRANSFORM_ID:
        raise DataError(
            f"the policy was trained on images of transform {spec.transform!r}; this code makes {TRANSFORM_ID!r}. "
            "Embed and train again: dvc repro train_flow"
        )
    if (drawn := spec.data.get("depth", DEPTH_ID)) != DEPTH_ID:
        raise DataError(
            f"the policy was trained on depth drawn as {drawn!r}; this code draws {DEPTH_ID!r}. "
            "Embed and train again: dvc repro train_flow"
        )
