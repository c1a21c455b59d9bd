"""An update that a graph holds is the update itself; where there is a GPU, as a CUDA graph, too."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from pipeline.errors import ConfigError
from pipeline.policy.network import PolicyNetwork
from pipeline.train.graphed import GraphedUpdate, check_fit
from pipeline.train.loop import Progress, train
from pipeline.train.settings import TrainFlow
from pipeline.train.update import Update
from tests.train.synthetic import ARCH, table
from tests.train.test_loop import CFG, same

NOISY, LONG = replace(ARCH, feature_noise=0.1), replace(CFG, epochs=50)


def run(scratch: Path, cfg: TrainFlow = CFG, cpu: bool = True) -> tuple[PolicyNetwork, Progress]:
    return train(Accelerator(cpu=cpu), table(), NOISY, cfg, scratch)


def assert_alike(first: tuple[PolicyNetwork, Progress], second: tuple[PolicyNetwork, Progress], rtol: float) -> None:
    curves = [[entry["train_loss"] for entry in progress.history] for _, progress in (first, second)]
    torch.testing.assert_close(*curves, rtol=rtol, atol=0)
    for a, b in zip(*(network.state_dict().values() for network, _ in (first, second)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=rtol)


def test_it_makes_the_same_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, what would be captured runs as it is: two hundred steps, every fourth with a smaller batch."""
    usual = run(tmp_path / "usual", LONG)
    functions: list[Callable[[], None]] = []

    def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        functions.append(function)
        return function

    monkeypatch.setattr("pipeline.train.loop.GraphedUpdate", lambda update: GraphedUpdate(update, capture))
    monkeypatch.setattr("torch.optim.AdamW.__init__", without_capturable(torch.optim.AdamW.__init__))
    graphed = run(tmp_path / "graphed", replace(LONG, cuda_graph=True))
    assert usual[1].step == 200 and len(functions) == 1
    assert_alike(usual, graphed, 2e-6)  # a learning rate on the device has half the digits


def without_capturable(init: Callable[..., None]) -> Callable[..., None]:
    """Only a GPU's optimiser can be captured."""
    return lambda self, *args, capturable=False, **named: init(self, *args, **named)


def test_a_training_that_was_interrupted_makes_the_same_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.train.loop.GraphedUpdate", lambda update: GraphedUpdate(update, lambda f, device: f))
    monkeypatch.setattr("torch.optim.AdamW.__init__", without_capturable(torch.optim.AdamW.__init__))
    cfg = replace(CFG, cuda_graph=True)
    whole, _ = run(tmp_path / "whole", cfg)
    advance, steps = GraphedUpdate.__call__, iter(range(7))

    def interrupted(self: GraphedUpdate, *args: Any) -> torch.Tensor:
        next(steps)  # ends in the second epoch
        return advance(self, *args)

    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(GraphedUpdate, "__call__", interrupted)
        run(tmp_path / "cut", cfg)
    assert same(whole, run(tmp_path / "cut", cfg)[0])


@pytest.mark.parametrize(
    ("changes", "processes", "device", "why"),
    [
        ({}, 1, "cpu", "training is on cpu"),
        ({}, 2, "cuda", "a batch is shared by 2 forward passes"),
        ({"microbatch_size": 2}, 1, "cuda", "a batch is shared by 8 forward passes"),
        ({"precision": "fp16"}, 1, "cuda", "train_flow.precision is fp16"),
        ({"teacher": "runs/flow/policy"}, 1, "cuda", "train_flow.teacher or train_flow.encoder.tune is set"),
        ({}, 1, "cuda", None),
    ],
)
def test_what_no_graph_can_be_made_of(changes: dict[str, Any], processes: int, device: str, why: str | None) -> None:
    given = replace(CFG, **changes), torch.device(device), processes
    if why is None:
        check_fit(*given)
        return
    told = rf"train_flow\.cuda_graph is true, but {why}.*\. Set train_flow\.cuda_graph to false"
    with pytest.raises(ConfigError, match=told):
        check_fit(*given)


def test_streamed_features_are_refused() -> None:
    update = object.__new__(Update)
    vars(update).update(
        accelerator=SimpleNamespace(device=torch.device("cuda")), table=SimpleNamespace(images=object())
    )
    with pytest.raises(ConfigError, match="features are streamed"):
        GraphedUpdate(update)


@pytest.fixture
def afresh() -> Iterator[None]:
    """Let Accelerate choose a device anew: it keeps the first one of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.gpu
def test_a_cuda_graph_makes_the_same_policy(tmp_path: Path, afresh: None) -> None:
    usual = run(tmp_path / "usual", LONG, cpu=False)
    graphed = run(tmp_path / "graphed", replace(LONG, cuda_graph=True), cpu=False)
    assert_alike(usual, graphed, 1e-3)
