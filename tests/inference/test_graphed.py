"""Sampling that a graph holds gives the actions of sampling; where there is a GPU, as CUDA graphs, too."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.inference.graph import UnrolledPolicy, act
from pipeline.inference.graphed import LARGEST, GraphedSampling, graphed
from pipeline.inference.policy import Policy
from pipeline.policy.network import PolicyNetwork
from tests.encode import tiny
from tests.inference import make
from tests.train.synthetic import ARCH

STEPS = 5


def network(seed: int = 0, **settings: object) -> PolicyNetwork:
    torch.manual_seed(seed)
    return PolicyNetwork(replace(ARCH, **settings)).eval()  # type: ignore[arg-type]


def run_at_once(made: list[int]) -> Callable[[Callable[[], None], torch.device], Callable[[], None]]:
    """Stand in for a capture; counts how many there were."""

    def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        made.append(1)
        return function

    return capture


@torch.no_grad()
@pytest.mark.parametrize("velocity", ["mlp", "residual"])
def test_it_gives_the_actions_of_sampling(velocity: str) -> None:
    """For any number of rows, in any order: one graph for each power of two, whose other rows do not matter."""
    policy, made = network(head_network=velocity), list[int]()
    sampling = GraphedSampling(policy, STEPS, run_at_once(made))
    for seed, rows in enumerate((1, 3, 4, 2, 1, 3, LARGEST + 1, 5)):
        inputs = UnrolledPolicy(policy, STEPS).examples(rows, seed)
        torch.testing.assert_close(sampling(inputs), act(policy, inputs, STEPS), rtol=0, atol=2e-6)
    assert len(made) == 4  # 1, 2, 4 and 8


@torch.no_grad()
def test_threads_do_not_mix_their_actions() -> None:
    policy = network()
    sampling = GraphedSampling(policy, STEPS, run_at_once([]))
    inputs = [UnrolledPolicy(policy, STEPS).examples(2, seed) for seed in range(4)]
    found: dict[int, list[torch.Tensor]] = {i: [] for i in range(4)}

    def ask(i: int) -> None:
        with torch.no_grad():
            found[i] += [sampling(inputs[i]) for _ in range(50)]

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


def fails(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing")


def holds_nothing(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    return lambda: None


@torch.no_grad()
@pytest.mark.parametrize(("capture", "told"), [(fails, "not permitted"), (holds_nothing, "differ from the policy's")])
def test_a_graph_that_cannot_be_made_is_done_without(
    capture: Callable[..., Callable[[], None]], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = network()
    sampling = GraphedSampling(policy, STEPS, capture)
    for seed in range(2):
        inputs = UnrolledPolicy(policy, STEPS).examples(3, seed)
        torch.testing.assert_close(sampling(inputs), act(policy, inputs, STEPS), rtol=0, atol=0)
    assert caplog.text.count("goes on without a CUDA graph") == 1 and told in caplog.text


@torch.no_grad()
@pytest.mark.parametrize("unit", [1e-5, 1e4])
def test_a_graph_is_judged_in_the_robots_own_units(unit: float, caplog: pytest.LogCaptureFixture) -> None:
    policy = network()
    policy.normaliser.action.std.mul_(unit)
    policy.limits.mul_(unit)
    inputs = UnrolledPolicy(policy, STEPS).examples(2, 0)
    for capture, trusted in ((run_at_once([]), True), (holds_nothing, False)):
        caplog.clear()
        torch.testing.assert_close(
            GraphedSampling(policy, STEPS, capture)(inputs), act(policy, inputs, STEPS), rtol=0, atol=2e-6 * unit
        )
        assert ("differ from the policy's" in caplog.text) is not trusted


def test_a_policy_acts_by_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register(tmp_path)
    path, seen = make.bundle(tmp_path / "policy"), make.observation()
    wanted, made = Policy.load(path, "cpu").act(seen, make.BOWL), list[int]()
    monkeypatch.setattr(
        "pipeline.inference.policy.graphed",
        lambda network, steps, device: GraphedSampling(network, steps, run_at_once(made)),
    )
    np.testing.assert_allclose(Policy.load(path, "cpu").act(seen, make.BOWL), wanted, rtol=0, atol=2e-6)
    assert made


def test_a_cpu_samples_as_it_is() -> None:
    assert graphed(network(), STEPS, torch.device("cpu")) is None


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_a_graph_gives_the_same_actions(caplog: pytest.LogCaptureFixture) -> None:
    """On the last one, too, which is not the current one where there are several."""
    for device in {torch.device("cuda", 0), torch.device("cuda", torch.cuda.device_count() - 1)}:
        policy = network().to(device)
        sampling = graphed(policy, STEPS, device)
        assert sampling is not None
        for seed, rows in enumerate((1, 3, 32, 1)):
            inputs = {name: x.to(device) for name, x in UnrolledPolicy(network(), STEPS).examples(rows, seed).items()}
            torch.testing.assert_close(sampling(inputs), act(policy, inputs, STEPS), rtol=0, atol=1e-4)
    assert "without a CUDA graph" not in caplog.text
