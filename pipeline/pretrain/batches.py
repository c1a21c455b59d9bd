"""Batches of pictures: each a function of the seed and the step alone, so that a training goes on where it was."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.encode.preprocess import Preprocess
from pipeline.libero.sim.simulator import CAMERAS
from pipeline.libero.suites import SUITES, tasks
from pipeline.pretrain.captions import Tokens, Writer, instruction_pairs
from pipeline.pretrain.data import Samples
from pipeline.pretrain.model import Batch

PAIRS = 32
"""Instructions of a batch, each in two ways."""
BRIGHTNESS, CONTRAST, CHANNEL, NOISE = 0.3, 0.3, 0.15, 0.02


class Batches:
    """Draws batches for one process of several."""

    def __init__(self, samples: Samples, preprocess: Preprocess, tokenizer: Any, seed: int) -> None:
        self._samples = samples
        self._preprocess = preprocess
        self._tokens = Tokens(tokenizer)
        self._writer = Writer(samples)
        self._seed = seed
        self._instructions = sorted({task.language for suite in SUITES for task in tasks(suite)})

    def draw(self, step: int, size: int, process: int = 0) -> Batch:
        """Return `size` pictures of any rows and cameras, in other light, for this process."""
        rng = np.random.default_rng([self._seed, step, process])
        rows, cameras = rng.integers(len(self._samples), size=size), rng.integers(len(CAMERAS), size=size)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return self.of(rows, cameras, rng, generator)

    def of(
        self,
        rows: np.ndarray,
        cameras: np.ndarray,
        rng: np.random.Generator,
        relight: torch.Generator | None = None,
        held_out: bool = False,
    ) -> Batch:
        """Return these pictures, as they are or in other light, with sentences in ways for training or held out."""
        samples = self._samples
        captions = self._writer.write(rows, cameras, rng, held_out)
        pairs = instruction_pairs(self._instructions, PAIRS, rng)
        names = list(CAMERAS)
        frames = np.stack([samples.images[names[c]][row] for row, c in zip(rows, cameras, strict=True)])
        images = self._preprocess(torch.from_numpy(frames))
        return Batch(
            images=images if relight is None else _relit(images, relight),
            camera=torch.from_numpy(cameras),
            text=torch.from_numpy(self._tokens(captions.texts)),
            label=torch.from_numpy(captions.label),
            changed=torch.from_numpy(captions.changed),
            pairs=torch.from_numpy(self._tokens([*pairs[0], *pairs[1]])),
            patch_noun=torch.from_numpy(samples.patch_noun[rows, cameras].astype(np.int64)),
            patch_place=torch.from_numpy(samples.patch_place[rows, cameras]),
            place=torch.from_numpy(samples.place[rows, cameras]),
            hand=torch.from_numpy(_hand(samples.hand[rows], cameras)),
        )


def _hand(hand: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """Return what each picture can tell of the hand: the camera at it sees how high it is at most, not where."""
    told = hand.copy()
    told[cameras > 0, :2] = np.nan
    return told


def _relit(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and colours of each picture, and add noise; all of normalised images."""
    count = len(images)

    def factors(reach: float, *shape: int) -> Tensor:
        return 1 + reach * (2 * torch.rand(count, *shape, generator=generator) - 1)

    middle = images.mean((1, 2, 3), keepdim=True)
    images = (images - middle) * factors(CONTRAST, 1, 1, 1) + middle
    images = images * factors(BRIGHTNESS, 1, 1, 1) * factors(CHANNEL, 3, 1, 1)
    return images + NOISE * torch.randn(images.shape, generator=generator)


def to(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    return Batch(**{name: value.to(device) for name, value in vars(batch).items()})
