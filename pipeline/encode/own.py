"""The project's own CLIP, which knows LIBERO's scenes and nothing else. Its files lie in models/, beside its card.

`python -m stages.pretrain_clip` makes the weights.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from open_clip.factory import add_model_config

from pipeline.errors import AssetError

MODEL = "ViT-Ti-16-LIBERO"
TAG = "libero"
"""What `embed.encoder.pretrained` is to be for its weights."""
_DIRECTORY = Path(__file__).parent / "models"
CONFIG, VOCABULARY, WEIGHTS, RECIPE = (
    _DIRECTORY / f"{MODEL}{ending}" for ending in (".json", ".bpe.gz", ".safetensors", ".recipe")
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
    if found != wanted:
        raise AssetError(f"{WEIGHTS}: damaged: its SHA-256 is {found}, and {RECIPE.name} says {wanted}. {remedy}")
    return WEIGHTS
