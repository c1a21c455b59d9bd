"""What a policy was told in training: the instructions and their features, which its bundle keeps."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import Store


def learnt_texts(
    stores: Mapping[str, Store], tasks: Mapping[str, Sequence[int] | None]
) -> tuple[tuple[str, ...], Float[Tensor, "K D"]]:
    """Return each instruction once, in the order of the stores and their tasks, and its features, float32.

    Args:
        tasks: of each suite, ids of those that are learnt; None is all that its store has.
    """
    found: dict[str, np.ndarray] = {}
    for suite, store in stores.items():
        texts, chosen = store.texts, tasks[suite]
        for instruction, task, row in zip(texts.instructions, map(int, texts.task_ids), texts.embedding, strict=True):
            if chosen is None or task in chosen:
                found.setdefault(instruction, np.asarray(row, np.float32))
    return tuple(found), torch.from_numpy(np.stack(list(found.values())))
