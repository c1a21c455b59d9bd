"""A CLIP in training: its towers, heads that tell where things are, and the loss. The heads are dropped afterwards."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.encode.patches import patches
from pipeline.pretrain.data import NOUNS

SCALE_M = 0.05
"""Positions are learnt in units of this, by an error that is squared within one and straight beyond."""
TEMPERATURE = 10.0  # as SigLIP begins
WEIGHTS = {"match": 1.0, "changed": 1.0, "words": 0.5, "patch_noun": 0.5, "patch_place": 0.3, "place": 0.3, "hand": 0.3}
HAND = 4  # position and gap
FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


@dataclass(frozen=True)
class Batch:
    """Pictures, sentences and what is so. C numbers the cameras; K counts NOUNS.

    Attributes:
        images: as the tower takes them.
        camera: of each.
        text, pairs: token ids: T = 2 B sentences as in Captions, and 2 Q instructions, said in one way and another.
        label, changed: as in Captions.
        patch_noun, patch_place, place, hand: as in Samples; NaN where there is none.
    """

    images: Float[Tensor, "B 3 S S"]
    camera: Int[Tensor, " B"]
    text: Int[Tensor, "T L"]
    label: Int[Tensor, "B T"]
    changed: Int8[Tensor, " B"]
    pairs: Int[Tensor, "R M"]
    patch_noun: Int[Tensor, "B P"]
    patch_place: Float[Tensor, "B P 3"]
    place: Float[Tensor, "B K 3"]
    hand: Float[Tensor, "B 4"]


class Pretraining(nn.Module):
    """Calling it gives the losses of a batch, by name, and their sum.

    Args:
        clip: an open_clip model.
        cameras: how many there are: each has heads of its own, for what they tell is measured in other frames.
        lock_image: only what reads text learns. There is no loss of places then.

    Attributes:
        side: patches along a side of a picture.
    """

    def __init__(self, clip: Any, cameras: int, lock_image: bool = False) -> None:
        super().__init__()
        self.locked = lock_image
        self.clip = clip
        tower = patches(clip.visual)
        assert tower is not None
        self.side, dim = tower.side, clip.text_projection.shape[1]
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.patch_noun = nn.Linear(tower.width, len(NOUNS) + 1)
        self.patch_place = nn.ModuleList(nn.Linear(tower.width, 3) for _ in range(cameras))
        told = 3 * len(NOUNS) + HAND
        self.of_tokens = nn.ModuleList(nn.Linear(tower.width * tower.side**2, told) for _ in range(cameras))
        self.of_pooled = nn.ModuleList(nn.Linear(dim, told) for _ in range(cameras))
        if lock_image:
            for part in (clip.visual, self.patch_noun, self.patch_place, self.of_tokens, self.of_pooled):
                part.requires_grad_(False)

    def see(self, images: Float[Tensor, "B 3 S S"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P W"]]:
        """Return pooled features and patch tokens, as a store holds them."""
        found = self.clip.visual.forward_intermediates(images, indices=1)
        return found["image_features"], found["image_intermediates"][0].flatten(2).transpose(1, 2)

    def read(self, text: Int[Tensor, "K L"]) -> Float[Tensor, "K D"]:
        """Return text features, as `encode_text` gives them for texts padded to the full length: it looks back only."""
        clip, length = self.clip, text.shape[1]
        x = clip.token_embedding(text) + clip.positional_embedding[:length]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        return x[torch.arange(len(x), device=x.device), text.argmax(-1)] @ clip.text_projection

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # On a CPU the gradient of fused attention takes a third of a step, for so few tokens.
        fused = [SDPBackend.MATH] if batch.images.device.type == "cpu" else list(FUSED)
        with sdpa_kernel(fused):
            pooled, tokens = self.see(batch.images)
            texts, pairs = self.read(batch.text), self.read(batch.pairs)
        with torch.autocast(batch.images.device.type, enabled=False):  # in half precision 60 cm are exact to 3 mm
            pooled, tokens, texts, pairs = (x.float() for x in (pooled, tokens, texts, pairs))
            losses = self._matching(pooled, texts, batch) | {"words": self._words(pairs)}
            losses |= {} if self.locked else self._where(pooled, tokens, batch)
        total = sum(WEIGHTS[name] * value for name, value in losses.items())
        return losses | {"loss": torch.as_tensor(total)}

    def _matching(self, pooled: Tensor, texts: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sigmoid losses of all pictures with all sentences, what is so weighing as much as what is not."""
        cosine = F.normalize(pooled, dim=-1) @ F.normalize(texts, dim=-1).T
        logits = self.clip.logit_scale.exp() * cosine + self.bias
        so, not_so = batch.label == 1, batch.label == -1
        match = _mean(F.softplus(-logits), so) + _mean(F.softplus(logits), not_so)
        count = len(pooled)
        margin = logits[:, :count].diagonal() - logits[:, count:].diagonal()
        return {"match": match, "changed": _mean(F.softplus(-margin), batch.changed >= 0)}

    def _words(self, texts: Tensor) -> Tensor:
        """Contrast of instructions said in one way with the same and others said in another."""
        one, other = F.normalize(texts, dim=-1).chunk(2)
        logits = self.clip.logit_scale.exp() * one @ other.T
        mine = torch.arange(len(one), device=logits.device)
        return (F.cross_entropy(logits, mine) + F.cross_entropy(logits.T, mine)) / 2

    def _where(self, pooled: Tensor, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        noun = F.cross_entropy(self.patch_noun(tokens).flatten(0, 1), batch.patch_noun.flatten() + 1)
        patch = self._by_camera(self.patch_place, tokens, batch.camera)
        told = [self._by_camera(self.of_tokens, tokens.flatten(1), batch.camera)]
        told.append(self._by_camera(self.of_pooled, pooled, batch.camera))
        place = [_distance(x[:, :-HAND].unflatten(1, (-1, 3)), batch.place) for x in told]
        hand = [_distance(x[:, -HAND:], batch.hand) for x in told]
        return {
            "patch_noun": noun,
            "patch_place": _distance(patch, batch.patch_place),
            "place": place[0] + 0.5 * place[1],
            "hand": hand[0] + 0.5 * hand[1],
        }

    def _by_camera(self, heads: nn.ModuleList, features: Tensor, camera: Tensor) -> Tensor:
        every = torch.stack([head(features) for head in heads])
        return every[camera, torch.arange(len(camera), device=camera.device)]


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def _distance(told: Tensor, true: Tensor) -> Tensor:
    known = ~true.isnan()
    error = F.smooth_l1_loss(told, true.nan_to_num() / SCALE_M, reduction="none")
    return (error * known).sum() / known.sum().clamp(min=1)
