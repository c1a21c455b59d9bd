"""Sampling on a GPU as CUDA graphs."""

import logging
import threading
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.inference.graph import Inputs, act
from pipeline.policy.cuda_graph import WARM_UP, Capture, Replay, captured
from pipeline.policy.network import PolicyNetwork

LARGEST = 32  # rows; of more, arithmetic is what takes time
HEADS = ("flow",)
"""Other heads may do work on the host that differs from call to call."""
ALIKE = 1e-3  # of the largest action, whatever its unit; a graph that captured nothing gives others
log = logging.getLogger(__name__)


class GraphedSampling:
    """`graph.act` as CUDA graphs, one for each power of two of rows; fewer rows fill a part of one.

    For any thread, on the default stream. Each graph is compared with `act` once; one that cannot be made, or gives
    other actions, is told of in the log, and `act` goes on in its place.

    Args:
        capture: makes the replay of a function on a device; a test's own where there is no GPU.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        steps: int,
        capture: Capture = captured,
    ) -> None:
        self._network, self._steps, self._capture = network, steps, capture
        self._graphs: dict[int, tuple[Inputs, Tensor, Replay] | None] = {}
        self._one_at_a_time = threading.Lock()

    def __call__(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B H A"]:
        rows = len(next(iter(inputs.values())))
        if rows > LARGEST:
            return act(self._network, inputs, self._steps)
        size = 1 << (rows - 1).bit_length()
        with self._one_at_a_time:
            if size not in self._graphs:
                self._graphs[size] = self._made(inputs, size)
            if (graph := self._graphs[size]) is None:
                return act(self._network, inputs, self._steps)
            places, actions, replay = graph
            for name, x in inputs.items():
                places[name][:rows].copy_(x)
            replay()
            return actions[:rows].clone()

    def _made(self, inputs: Mapping[str, Tensor], size: int) -> tuple[Inputs, Tensor, Replay] | None:
        """Return where a graph of `size` rows reads its inputs and leaves its actions, and what replays it."""
        places = {name: x[:1].expand(size, *x.shape[1:]).clone() for name, x in inputs.items()}
        for _ in range(WARM_UP):
            wanted = act(self._network, places, self._steps)
        actions = torch.zeros_like(wanted)

        def run() -> None:
            actions.copy_(act(self._network, places, self._steps))

        try:
            replay = self._capture(run, actions.device)
            replay()
        except RuntimeError as error:
            log.warning("sampling goes on without a CUDA graph, which failed: %s", error)
            return None
        largest = float(wanted.abs().nan_to_num(0.0, posinf=0.0).max())
        if not torch.allclose(actions, wanted, rtol=0, atol=ALIKE * largest, equal_nan=True):
            log.warning("sampling goes on without a CUDA graph, whose actions differ from the policy's")
            return None
        return places, actions, replay


def graphed(network: PolicyNetwork, steps: int, device: torch.device) -> GraphedSampling | None:
    """Return sampling as CUDA graphs where that is possible."""
    return GraphedSampling(network, steps) if device.type == "cuda" and network.arch.head in HEADS else None
