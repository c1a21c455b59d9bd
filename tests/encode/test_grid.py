"""Patch-token grids against tokens taken by hand, with hooks on the blocks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from pipeline.encode.clip import ClipEncoder
from pipeline.encode.settings import GridParams
from pipeline.errors import ConfigError
from tests.encode import tiny
from tests.encode.test_preprocess import pictures

BLOCKS, SIDE = 3, 4
PARAMS = replace(tiny.PARAMS, model="tiny-patches")
VISION = {
    "tiny-patches": {"image_size": 32, "layers": BLOCKS, "width": 32, "head_width": 16, "patch_size": 8},
    "tiny-resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
}


@pytest.fixture(scope="module", autouse=True)
def _models(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("configs")
    for name, vision in VISION.items():
        (folder / f"{name}.json").write_text(json.dumps({**tiny.CONFIG, "vision_cfg": vision}))
        open_clip.add_model_config(folder / f"{name}.json")


@pytest.mark.parametrize("layer", [-1, -2, -BLOCKS])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_tokens_are_those_of_the_block(size: int, layer: int) -> None:
    encoder = ClipEncoder(PARAMS, grid=GridParams(size, layer))
    images = encoder.prepare(pictures(32))
    seen: list[torch.Tensor] = []
    block = encoder.visual.transformer.resblocks[layer]
    with block.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        found = encoder.forward(images)
    assert encoder.tokens == (size * size, 32)
    assert (found["grid"].dtype, found["grid"].shape) == (np.float16, (3, size * size, 32))
    patches = seen[0][:, 1:].reshape(3, SIDE, SIDE, 32).numpy()  # without the class token; row by row
    step = SIDE // size
    for row in range(size):
        for column in range(size):
            square = patches[:, row * step : (row + 1) * step, column * step : (column + 1) * step]
            np.testing.assert_allclose(found["grid"][:, row * size + column], square.mean((1, 2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pooled_features_are_the_same_bits_with_and_without(precision: str) -> None:
    params = replace(PARAMS, precision=precision)
    plain, grid = ClipEncoder(params), ClipEncoder(params, grid=GridParams(2, -2))
    frames = pictures(128)
    assert set(plain.forward(plain.prepare(frames))) == {"image"}
    np.testing.assert_array_equal(grid.images(frames), plain.images(frames))
    assert grid.identity == plain.identity


@pytest.mark.parametrize(
    ("model", "grid", "message"),
    [
        ("tiny-patches", GridParams(3, -1), r"size is 3, but tiny-patches has 4 x 4 patches: use 1 or 2 or 4"),
        ("tiny-patches", GridParams(2, -4), r"layer is -4; tiny-patches has the blocks -1 \(the last\) to -3"),
        ("tiny-patches", GridParams(2, 0), r"layer is 0"),
        (
            "tiny-resnet",
            GridParams(2, -1),
            r"tiny-resnet has no patch tokens \(ModifiedResNet\)",
        ),
    ],
)
def test_grids_that_cannot_be_are_refused(model: str, grid: GridParams, message: str) -> None:
    with pytest.raises(ConfigError, match=f"embed.grid.*{message}"):
        ClipEncoder(replace(PARAMS, model=model), grid=grid)
