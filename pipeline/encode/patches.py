"""Where an image tower keeps its patch tokens, if it is a vision transformer of open_clip's own or of timm."""

from dataclasses import dataclass
from typing import Any

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models import VisionTransformer as TimmTransformer

from pipeline.encode.settings import GridParams, grid_misfit
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Patches:
    """Of a vision transformer: patches along a side, blocks, and the width of a token."""

    side: int
    blocks: int
    width: int


def patches(visual: Any) -> Patches | None:
    """Return what patch tokens a tower has; None if it has none."""
    if isinstance(visual, VisionTransformer):
        return Patches(int(visual.grid_size[0]), len(visual.transformer.resblocks), int(visual.transformer.width))
    if isinstance(visual, TimmModel) and isinstance(visual.trunk, TimmTransformer):
        trunk: Any = visual.trunk
        return Patches(int(trunk.patch_embed.grid_size[0]), len(trunk.blocks), int(trunk.embed_dim))
    return None


def grid_place(visual: Any, model: str, grid: GridParams) -> tuple[int, int, int]:
    """Return the number of the block from 0, patches averaged along a side, and the width of a token.

    Raises:
        ConfigError: the tower cannot give such a grid.
    """
    found = patches(visual)
    if found is None:
        raise ConfigError(
            f"embed.grid: {model} has no patch tokens ({type(visual).__name__}). Use a vision transformer, such as "
            "ViT-B-32, or set embed.grid to null"
        )
    if wrong := grid_misfit(grid.size, model, found.side):
        raise ConfigError(wrong)
    if not -found.blocks <= grid.layer <= -1:
        raise ConfigError(f"embed.grid.layer is {grid.layer}; {model} has the blocks -1 (the last) to -{found.blocks}")
    return found.blocks + grid.layer, found.side // grid.size, found.width
