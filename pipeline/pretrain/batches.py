"""Batches of pictures: each a function of the seed and the step alone, so that a training goes on where it was."""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pipeline.encode.augment import relight
from pipeline.encode.preprocess import Preprocess
from pipeline.errors import DataError
from pipeline.libero.sim.simulator import CAMERAS
from pipeline.pretrain.captions import Tokens, Writer, distinct, instruction_pairs
from pipeline.pretrain.data import Samples
from pipeline.pretrain.model import Batch

PAIRS = 32
"""Instructions of a batch, each in two ways."""
LIGHT, COLOUR = 0.3, 0.15  # how far factors of brightness, contrast and each colour are from 1 at most
NOISE = 2.0  # of 255


class Batches:
    """Draws batches for one process of several."""

    def __init__(self, samples: Samples, preprocess: Preprocess, tokenizer: Any, seed: int) -> None:
        self._samples = samples
        self._sayable = samples.sayable
        if not self._sayable.any(0).all():
            raise DataError("scenes.zarr: nothing can be said of any picture of a camera. Raise scenes.units")
        self._preprocess = preprocess
        self._tokens = Tokens(tokenizer)
        self._writer = Writer(samples)
        self._seed = seed
        told = {fact.names[0] for fact in samples.facts if fact.predicate == "instruction"}
        self._instructions = distinct(sorted(told))

    def draw(self, step: int, size: int, process: int = 0) -> Batch:
        """Return `size` pictures of any rows and cameras, in other light, for this process."""
        rng = np.random.default_rng([self._seed, step, process])
        rows, cameras = rng.integers(len(self._samples), size=size), rng.integers(len(CAMERAS), size=size)
        while len(unsaid := np.flatnonzero(~self._sayable[rows, cameras])):
            rows[unsaid] = rng.integers(len(self._samples), size=len(unsaid))
        return self.of(rows, cameras, rng, light=np.random.default_rng([self._seed, step, process, 1]))

    def of(
        self,
        rows: np.ndarray,
        cameras: np.ndarray,
        rng: np.random.Generator,
        light: np.random.Generator | None = None,
        held_out: bool = False,
    ) -> Batch:
        """Return these pictures, as they are or in other light, with sentences in ways for training or held out."""
        samples = self._samples
        captions = self._writer.write(rows, cameras, rng, held_out)
        pairs = instruction_pairs(self._instructions, PAIRS, rng)
        names = list(CAMERAS)
        frames = np.stack([samples.images[names[c]][row] for row, c in zip(rows, cameras, strict=True)])
        pixels = torch.from_numpy(frames)
        return Batch(
            images=self._preprocess(pixels if light is None else _relit(pixels, light)),
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


def _relit(frames: UInt8[Tensor, "B H W 3"], rng: np.random.Generator) -> UInt8[Tensor, "B H W 3"]:
    """Change brightness, contrast and colours of each frame, and add noise."""
    count = len(frames)
    lit = relight(frames, 1 + rng.uniform(-LIGHT, LIGHT, (count, 2))).float()
    lit *= torch.from_numpy(1 + rng.uniform(-COLOUR, COLOUR, (count, 1, 1, 3))).float()
    lit += NOISE * torch.from_numpy(rng.standard_normal(lit.shape, np.float32))
    return lit.round_().clamp_(0, 255).to(torch.uint8)


def to(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    return Batch(**{name: value.to(device) for name, value in vars(batch).items()})
