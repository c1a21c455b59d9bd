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
    add_model_config(CONFIG)


def weights() -> Path:
    """Return the file of the weights.

    Raises:
        AssetError: it is not there, or not what was published.
    """
    remedy = "Check it out again, or make it anew: python -m stages.pretrain_clip (hours)"
    try:
        found, wanted = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(), json.loads(RECIPE.read_text())["sha256"]
    except OSError as error:
        raise AssetError(f"{error.filename}: {error.strerror}. {remedy}") from None
    except (ValueError, LookupError, TypeError):
        raise AssetError(f"{RECIPE}: damaged: it does not name the SHA-256 of the weights. {remedy}") from None
    if found != wanted:
        raise AssetError(f"{WEIGHTS}: damaged: its SHA-256 is {found}, and {RECIPE.name} says {wanted}. {remedy}")
    return WEIGHTS
