"""The tensor transform against open_clip's own, which goes through Pillow."""

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from pipeline.encode import preprocess
from pipeline.encode.preprocess import Preprocess
from pipeline.errors import DataError
from pipeline.libero.conventions import upright

CFG = {"size": 224, "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), "interpolation": "bicubic"}


def pictures(side: int) -> np.ndarray:
    """Return (3, side, side, 3): noise, a gradient, and a checkerboard that overshoots at its edges."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    gradient = np.stack([x, y, x + y], -1) * 255 / (2 * side)
    board = np.repeat(((x // 8 + y // 8) % 2 * 255)[..., None], 3, -1)
    return np.stack([rng.integers(0, 256, (side, side, 3)), gradient, board]).astype(np.uint8)


def reference(frames: np.ndarray, size: int) -> torch.Tensor:
    cfg = PreprocessCfg(size=size, mean=CFG["mean"], std=CFG["std"], interpolation="bicubic", resize_mode="shortest")
    apply = image_transform_v2(cfg, is_train=False)
    return torch.stack([apply(Image.fromarray(frame)) for frame in frames])


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the mean absolute difference in pixel values of 0..255."""
    return float(((ours - theirs) * torch.tensor(CFG["std"]).view(3, 1, 1)).abs().mean() * 255)


@pytest.mark.parametrize("side", [84, 128, 224, 256, 500])
@pytest.mark.parametrize("size", [224, 32])
def test_matches_open_clip(side: int, size: int) -> None:
    frames = pictures(side)
    ours = Preprocess.from_open_clip({**CFG, "size": size})(torch.from_numpy(frames))
    assert ours.shape == (3, 3, size, size)
    assert difference(ours, reference(frames, size)) <= 0.5


@pytest.mark.parametrize("side", [128, 500])
def test_the_float_branch_of_gpus_matches_too(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "_resize", preprocess._resize_float)
    frames = pictures(side)
    ours = Preprocess.from_open_clip(CFG)(torch.from_numpy(frames))
    assert difference(ours, reference(frames, 224)) <= 0.5


def test_without_antialias_it_would_not_match() -> None:
    """The bound is one that the wrong kernel misses, also when enlarging."""
    frames = pictures(128)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    wrong = torch.nn.functional.interpolate(images, size=(224, 224), mode="bicubic", align_corners=False)
    wrong = wrong.round().clamp(0, 255) / 255
    mean, std = (torch.tensor(CFG[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert difference((wrong - mean) / std, reference(frames, 224)) > 0.5


def test_a_batch_is_its_frames() -> None:
    frames = pictures(128)
    preprocess = Preprocess.from_open_clip(CFG)
    alone = torch.cat([preprocess(torch.from_numpy(frames[i : i + 1])) for i in range(3)])
    assert torch.equal(preprocess(torch.from_numpy(frames)), alone)


def test_upright_flips_rows_only() -> None:
    frames = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    flipped = upright(frames)
    np.testing.assert_array_equal(flipped[1, 0, 3], frames[1, 2, 3])
    np.testing.assert_array_equal(flipped[:, 1], frames[:, 1])
    np.testing.assert_array_equal(upright(flipped), frames)
    np.testing.assert_array_equal(upright(frames[0]), flipped[0])
    assert flipped.flags.c_contiguous


def test_refusals() -> None:
    with pytest.raises(DataError, match="frames are 120x128"):
        Preprocess.from_open_clip(CFG)(torch.zeros(1, 120, 128, 3, dtype=torch.uint8))
    with pytest.raises(DataError, match="wants 'bilinear' interpolation"):
        Preprocess.from_open_clip({**CFG, "interpolation": "bilinear"})
    with pytest.raises(DataError, match="takes 224x256 images"):
        Preprocess.from_open_clip({**CFG, "size": (224, 256)})
    assert Preprocess.from_open_clip({**CFG, "size": (64, 64)}).size == 64
