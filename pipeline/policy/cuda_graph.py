"""A function's kernels as one CUDA graph: launched together, and not one by one from Python."""

import threading
from collections.abc import Callable

import torch

_one_at_a_time = threading.Lock()
Replay = Callable[[], None]
Capture = Callable[[Callable[[], None], torch.device], Replay]
WARM_UP = 3
"""Calls before a capture: libraries allocate and choose in the first ones."""


def captured(function: Callable[[], None], device: torch.device) -> Replay:
    """Capture a function of a GPU, which does not run it; return what replays it.

    Other threads may use the GPU meanwhile; captures come one after the other, as CUDA wants them.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)  # torch's own would be one of the GPU that was current when it was made
    with (
        _one_at_a_time,
        torch.cuda.device(device),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        function()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay
