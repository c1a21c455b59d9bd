"""Sampling that a graph holds gives the actions of sampling; where there is a GPU, as CUDA graphs, too."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pipeline.inference.graph import UnrolledPolicy, act
from pipeline.inference.graphed import LARGEST, GraphedSampling, sampling
from pipeline.policy.network import PolicyNetwork
from tests.train.synthetic import ARCH

STEPS = 5


def network(seed: int = 0, **settings: object) -> PolicyNetwork:
    torch.manual_seed(seed)
    return PolicyNetwork(replace(ARCH, **settings)).eval()  # type: ignore[arg-type]


def run_at_once(made: list[int]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Stand in for a capture; counts how many there were."""

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        made.append(1)
        return function

    return capture


@torch.no_grad()
@pytest.mark.parametrize("velocity", ["mlp", "residual"])
def test_it_gives_the_actions_of_sampling(velocity: str) -> None:
    """For any number of rows, in any order: one graph for each power of two, whose other rows do not matter."""
    policy, made = network(head_network=velocity), list[int]()
    graphed = GraphedSampling(policy, STEPS, run_at_once(made))
    for seed, rows in enumerate((1, 3, 4, 2, 1, 3, LARGEST + 1, 5)):
        inputs = UnrolledPolicy(policy, STEPS).examples(rows, seed)
        torch.testing.assert_close(graphed(inputs), act(policy, inputs, STEPS), rtol=0, atol=2e-6)
    assert len(made) == 4  # 1, 2, 4 and 8


@torch.no_grad()
def test_threads_do_not_mix_their_actions() -> None:
    policy = network()
    graphed = GraphedSampling(policy, STEPS, run_at_once([]))
    inputs = [UnrolledPolicy(policy, STEPS).examples(2, seed) for seed in range(4)]
    found: dict[int, list[torch.Tensor]] = {i: [] for i in range(4)}

    def ask(i: int) -> None:
        with torch.no_grad():
            found[i] += [graphed(inputs[i]) for _ in range(50)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, chunks in found.items():
        wanted = act(policy, inputs[i], STEPS)
        assert len(chunks) == 50
        for chunk in chunks:
            torch.testing.assert_close(chunk, wanted, rtol=0, atol=2e-6)


def test_a_cpu_samples_as_it_is() -> None:
    assert not isinstance(sampling(network(), STEPS, torch.device("cpu")), GraphedSampling)


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_a_graph_gives_the_same_actions() -> None:
    policy = network().cuda()
    graphed = sampling(policy, STEPS, torch.device("cuda"))
    assert isinstance(graphed, GraphedSampling)
    for seed, rows in enumerate((1, 3, 32, 1)):
        inputs = {name: x.cuda() for name, x in UnrolledPolicy(network(), STEPS).examples(rows, seed).items()}
        torch.testing.assert_close(graphed(inputs), act(policy, inputs, STEPS), rtol=0, atol=1e-4)
