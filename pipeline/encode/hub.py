"""Weights of open_clip's tags in the Hugging Face hub."""

from pathlib import Path

from huggingface_hub.errors import EntryNotFoundError
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from pipeline.hub import fetch

REVISIONS = {
    "timm/vit_base_patch16_clip_224.openai": "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
    "timm/vit_base_patch32_clip_224.openai": "a6f597a30f7b82c51704746581f9a4e41421e878",
    "timm/vit_large_patch14_clip_224.openai": "18d0535469bb561bf468d76c1d73aa35156c922b",
}
"""Repository -> commit. Of a repository that is not here the main branch is taken; what that was, is in the record of
the build (.scratch/embed/<suite>.json), from where it can be put here."""


def hub_file(place: str) -> Path:
    """Return the local path of a weights file, fetched if it is not in the cache.

    Args:
        place: as in open_clip's registry: "organisation/name/" or "organisation/name/file". For a .bin or .pth file,
            a .safetensors file beside it is preferred.

    Raises:
        OSError: as `pipeline.hub.fetch`.
    """
    repository, _, name = place.rpartition("/")
    *preferred, last = _alternatives(name)
    for candidate in preferred:
        try:
            return fetch(repository, candidate, REVISIONS.get(repository))
        except EntryNotFoundError:
            continue
    return fetch(repository, last, REVISIONS.get(repository))


def _alternatives(name: str) -> list[str]:
    if not name:
        return [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    stem, _, suffix = name.rpartition(".")
    return [f"{stem}.safetensors", name] if suffix in ("bin", "pth") else [name]
