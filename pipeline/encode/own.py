"""The project's own CLIP, which knows LIBERO's scenes and nothing else. Its files lie in models/, beside its card.

`python -m stages.pretrain_clip` makes the weights.
"""

import hashlib
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

from open_clip.factory import add_model_config
from timm.layers import LayerNorm2d
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import nn

from pipeline.errors import AssetError

MODEL = "ViT-Ti-16-LIBERO"
TAG = "libero"
"""What `embed.encoder.pretrained` is to be for its weights."""
_DIRECTORY = Path(__file__).parent / "models"
CONFIG, VOCABULARY, WEIGHTS, RECIPE = (
    _DIRECTORY / f"{MODEL}{ending}" for ending in (".json", ".bpe.gz", ".safetensors", ".recipe")
)


default_cfgs = generate_default_cfgs({"vit_libero_convstem16_128": {"input_size": (3, 128, 128)}})  # timm looks for it


@register_model
def vit_libero_convstem16_128(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Return the image tower: five small convolutions make 8 x 8 tokens, which five blocks compare.

    Trained from scratch on few pictures, a transformer that cuts them into patches learns slowly where things are
    (Xiao et al. 2021, Early Convolutions Help Transformers See Better).
    """
    channels, strides = (32, 64, 128, 128, 256), (2, 2, 2, 1, 2)
    stem = ConvStem(
        depth=len(channels), channels=channels, stride=strides, padding=1, norm_layer=LayerNorm2d, act_layer=nn.GELU
    )
    embed = partial(HybridEmbed, backbone=stem, proj=False)
    sizes = {"img_size": 128, "patch_size": 1, "embed_dim": channels[-1], "depth": 5, "num_heads": 4}
    return build_model_with_cfg(
        VisionTransformer, "vit_libero_convstem16_128", pretrained, embed_layer=embed, **(sizes | kwargs)
    )


@cache
def register() -> None:
    """Tell open_clip of the architecture."""
    architecture()
    add_model_config(CONFIG)


def architecture() -> dict[str, Any]:
    """Return what open_clip is told. Raises AssetError: the file is not there, or damaged."""
    try:
        return json.loads(CONFIG.read_text())
    except (OSError, ValueError) as error:
        raise AssetError(f"{CONFIG}: damaged or not there ({error}). Check it out again") from None


def weights(directory: Path | None = None) -> Path:
    """Return the file of the weights in a directory that `stages.pretrain_clip` wrote; without one the published.

    Raises:
        AssetError: it is not there, or not what was published; or architecture or vocabulary is another than it had.
    """
    remedy = "Check it out again, or make it anew: python -m stages.pretrain_clip (hours)"
    if directory is not None:
        remedy = (
            "Make it by python -m stages.pretrain_clip, where pretrain_clip.pretrained is null, or name another one"
        )
    directory = directory or WEIGHTS.parent
    file, about = directory / WEIGHTS.name, directory / RECIPE.name
    try:
        recipe = json.loads(about.read_text())
        found, wanted, learnt = _sha256(file), recipe["sha256"], recipe["identity"]
        others = [
            part.name
            for part, same in (
                (VOCABULARY, _sha256(VOCABULARY) == learnt["vocabulary"]),
                (CONFIG, architecture() == learnt["architecture"]),
            )
            if not same
        ]
    except OSError as error:
        raise AssetError(f"{error.filename}: {error.strerror}. {remedy}") from None
    except (ValueError, LookupError, TypeError):
        raise AssetError(
            f"{about}: damaged: it does not name the SHA-256 of the weights, and what they learnt by. {remedy}"
        ) from None
    if found != wanted:
        raise AssetError(f"{file}: damaged: its SHA-256 is {found}, and {about.name} says {wanted}. {remedy}")
    if others:
        raise AssetError(f"{file}: learnt by another {' and '.join(others)} than lies beside it. {remedy}")
    return file


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
