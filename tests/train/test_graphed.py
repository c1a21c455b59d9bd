"""An update that a graph holds is the update itself; where there is a GPU, as a CUDA graph, too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline.errors import ConfigError
from pipeline.policy.network import PolicyNetwork
from pipeline.train.graphed import GraphedUpdate
from pipeline.train.loop import Progress, train
from pipeline.train.settings import TrainFlow
from tests.train.synthetic import ARCH, table
from tests.train.test_loop import CFG

NOISY, LONG = replace(ARCH, feature_noise=0.1), replace(CFG, epochs=50)


def run(scratch: Path, cfg: TrainFlow = CFG, cpu: bool = True) -> tuple[PolicyNetwork, Progress]:
    return train(Accelerator(cpu=cpu), table(), NOISY, cfg, scratch)


def assert_alike(first: tuple[PolicyNetwork, Progress], second: tuple[PolicyNetwork, Progress], rtol: float) -> None:
    curves = [[entry["train_loss"] for entry in progress.history] for _, progress in (first, second)]
    torch.testing.assert_close(*curves, rtol=rtol, atol=0)
    for a, b in zip(*(network.state_dict().values() for network, _ in (first, second)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=rtol)


def test_it_makes_the_same_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, what would be recorded is run as it is: two hundred steps, every fourth with a smaller batch."""
    usual = run(tmp_path / "usual", LONG)
    recorded: list[Callable[[], None]] = []

    def record(function: Callable[[], None]) -> Callable[[], None]:
        recorded.append(function)
        return function

    monkeypatch.setattr("pipeline.train.loop.GraphedUpdate", lambda update: GraphedUpdate(update, record))
    monkeypatch.setattr("torch.optim.AdamW.__init__", without_capturable(torch.optim.AdamW.__init__))
    graphed = run(tmp_path / "graphed", replace(LONG, cuda_graph=True))
    assert usual[1].step == 200 and len(recorded) == 1
    assert_alike(usual, graphed, 2e-6)  # a learning rate on the device has half the digits


def without_capturable(init: Callable[..., None]) -> Callable[..., None]:
    """Only a GPU's optimiser can be recorded."""
    return lambda self, *args, capturable=False, **named: init(self, *args, **named)


def test_a_cpu_has_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_flow\.cuda_graph is true, but training is on cpu\. Set it to false"):
        run(tmp_path, replace(CFG, cuda_graph=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cuda_graph_makes_the_same_policy(tmp_path: Path) -> None:
    usual = run(tmp_path / "usual", LONG, cpu=False)
    graphed = run(tmp_path / "graphed", replace(LONG, cuda_graph=True), cpu=False)
    assert_alike(usual, graphed, 1e-3)
