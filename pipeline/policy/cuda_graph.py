"""A function's kernels as one CUDA graph: launched together, and not one by one from Python."""

from collections.abc import Callable

import torch

Replay = Callable[[], None]
WARM_UP = 3
"""Calls before a capture: libraries allocate and choose in the first ones."""


def captured(function: Callable[[], None]) -> Replay:
    """Capture a function, which does not run it; return what replays it. Other threads may use the GPU meanwhile."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay
