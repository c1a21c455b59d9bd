"""The policy bundle: one directory with weights.safetensors and policy.json. Nothing in it is a pickle.

text.safetensors holds the features of the instructions that the policy learnt; of a policy that was trained through
CLIP, encoder.safetensors holds the image tower. policy.json has the SHA-256 of these files, and one of itself: what has
changed since it was written is refused. README.md, the model card, is for people: no digest counts it.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors.torch import load as read_tensors
from safetensors.torch import save as to_bytes
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import publish_directory, published
from pipeline.policy.keyframes import PREFIX
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.seal import is_sealed, sealed, sha256

FORMAT = "vla-flow-policy"
VERSION = 8
READABLE = (7, VERSION)  # 7 has no features of instructions, and is otherwise the same
WEIGHTS = "weights.safetensors"
TOWER = "encoder.safetensors"
TEXT = "text.safetensors"
TEXT_KEY = "embedding"  # its one tensor, (K, D): a row for each of PolicySpec.instructions
CARD = "README.md"
JSON = "policy.json"


@dataclass(frozen=True)
class PolicySpec:
    """policy.json: what the policy is, and what it was trained on."""

    architecture: Architecture
    encoder: dict[str, Any]  # ClipEncoder.identity of the features, before any tuning
    tune: Literal["none", "lora", "full"]  # how the image tower was trained with the policy
    grid: dict[str, int] | None  # size and layer of the patch tokens that are its features; None: pooled features
    transform: str  # id of the image and proprioception transform
    data: dict[str, Any]  # fingerprints of the stores, render quality, which label
    provenance: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)  # settings, demonstrations and machine of the training
    instructions: tuple[str, ...] = ()  # whose text features the bundle holds

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "architecture": self.architecture.to_json(),
            "encoder": self.encoder,
            "tune": self.tune,
            "grid": self.grid,
            "transform": self.transform,
            "data": self.data,
            "provenance": self.provenance,
            "recipe": self.recipe,
            "instructions": list(self.instructions),
        }

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the bundle's files beside policy.json and the card."""
        return (WEIGHTS, *([TOWER] if self.tune != "none" else []), *([TEXT] if self.instructions else []))


@dataclass(frozen=True)
class PolicyBundle:
    """A loaded policy."""

    spec: PolicySpec
    network: PolicyNetwork
    device: torch.device
    tower: dict[str, Tensor] | None  # weights of a tuned image tower, under open_clip's names; None: the encoder's own
    texts: Float[Tensor, "K D"] | None = None  # features of spec.instructions, raw, on the CPU; None: there are none
    digest: str | None = None  # `weights_digest` of what was read; None for a bundle that was not read from files


def save(
    path: Path,
    network: PolicyNetwork,
    spec: PolicySpec,
    tower: Mapping[str, Tensor] | None = None,
    texts: Float[Tensor, "K D"] | None = None,
    card: str | None = None,
) -> None:
    """Write the bundle to the directory `path`: complete or not at all. An older bundle there is replaced.

    Args:
        tower: weights of the image tower, if it was tuned.
        texts: features of `spec.instructions`, if there are any.
        card: text of the model card.
    """
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    elsewhere = ("visual.", PREFIX)  # the image tower in a file of its own, what is for training alone in none
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(elsewhere)}
    files = {WEIGHTS: _content(weights)}
    if tower is not None:
        files[TOWER] = _content(tower)
    if texts is not None:
        if len(texts) != len(spec.instructions):
            raise ValueError(f"{len(texts)} rows of text features for {len(spec.instructions)} instructions")
        files[TEXT] = _content({TEXT_KEY: texts})
    for name, content in files.items():
        (partial / name).write_bytes(content)
    tree = {**spec.to_json(), "files": {name: sha256(content) for name, content in files.items()}}
    (partial / JSON).write_text(sealed(tree))
    if card is not None:
        (partial / CARD).write_text(card)
    publish_directory(partial, path)


def _content(weights: Mapping[str, Tensor]) -> bytes:
    return to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})


def load(path: str | Path, device: str | torch.device = "cpu") -> PolicyBundle:
    """Read a bundle.

    Raises:
        DataError: a file is missing or damaged, or the bundle is of another format or version.
    """
    path = Path(path)
    spec, contents = _read(path)
    network = PolicyNetwork(spec.architecture)
    try:
        network.load_state_dict(read_tensors(contents[WEIGHTS]))
    except RuntimeError as error:  # of other names or shapes
        raise DataError(f"{path / WEIGHTS}: are not this policy's weights: {error}. Train again.") from None
    tower = read_tensors(contents[TOWER]) if TOWER in contents else None
    texts = read_tensors(contents[TEXT])[TEXT_KEY] if TEXT in contents else None
    digest = sha256(b"".join(contents.values()))
    return PolicyBundle(spec, network.to(device).eval(), torch.device(device), tower, texts, digest)


def weights_digest(path: str | Path) -> str:
    """Return the SHA-256 of all tensors of the bundle at `path`, and of nothing else in it.

    Raises:
        DataError: there is no bundle, or one that is damaged.
    """
    return sha256(b"".join(_read(Path(path))[1].values()))


def _read(path: Path) -> tuple[PolicySpec, dict[str, bytes]]:
    """Return what the policy is, and the content of its files as it was written, that of WEIGHTS first."""
    path = published(path)
    digests, spec = _read_json(path)
    contents = {}
    for name in spec.files:
        try:
            contents[name] = (path / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"{path / name}: not found or not readable ({error.strerror}). Train again: dvc repro -f train_flow"
            ) from None
        if (found := sha256(contents[name])) != digests.get(name):
            raise DataError(
                f"{path / name}: has changed since it was written: its SHA-256 is {found}, and {JSON} says "
                f"{digests.get(name)}. Copy it again, or train again: dvc repro -f train_flow"
            )
    return spec, contents


def load_spec(path: str | Path) -> PolicySpec:
    """Read a bundle's policy.json alone. Raises DataError as `load` does."""
    return _read_json(published(Path(path)))[1]


def _read_json(path: Path) -> tuple[dict[str, str], PolicySpec]:
    """Return the digests of the files, and what the policy is."""
    file = path / JSON
    try:
        text = file.read_bytes().decode()
        tree = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"{file}: not found. Train a policy first: dvc repro train_flow") from None
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error}). Train again: dvc repro -f train_flow") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or tree.get("version") not in READABLE:
        raise DataError(f"{file}: not a {FORMAT} of version {VERSION}. Train again with this code.")
    if not is_sealed(text, tree):
        raise DataError(
            f"{file}: has changed since it was written. Copy it again, or train again: dvc repro -f train_flow"
        )
    try:
        return tree["files"], PolicySpec(
            architecture=Architecture.from_json(tree["architecture"]),
            encoder=tree["encoder"],
            tune=tree["tune"],
            grid=tree["grid"],
            transform=tree["transform"],
            data=tree["data"],
            provenance=tree["provenance"],
            recipe=tree["recipe"],
            instructions=tuple(tree["instructions"]) if tree["version"] > 7 else (),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: incomplete or unknown entry ({error}). Train again with this code.") from None
