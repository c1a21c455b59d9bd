"""Action errors against ones worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.policy.network import PolicyNetwork
from pipeline.train.evaluation import action_error, straightness
from tests.train.synthetic import ARCH, table


class Constant(PolicyNetwork):
    """Gives the same action, whatever it sees."""

    def act(self, images, text, proprio, noise, steps=None):
        return torch.full_like(noise, 0.25)


def test_each_dimension_has_its_own_error() -> None:
    data = table()
    rows = torch.arange(len(data))
    mse, mae = action_error(Constant(replace(ARCH, horizon=1, n_action_steps=1)), data, rows, limit=10**6, seed=0)
    torch.testing.assert_close(mse, (data.action - 0.25).double().square().mean(0))
    torch.testing.assert_close(mae, (data.action - 0.25).double().abs().mean(0))
    few, _ = action_error(Constant(replace(ARCH, horizon=1, n_action_steps=1)), data, rows, limit=2, seed=0)
    torch.testing.assert_close(few, (data.action[[0, -1]] - 0.25).double().square().mean(0))
    assert few[0] != pytest.approx(float(mse[0]))


class Rising(nn.Module):
    """The velocity is the time: paths that bend, whatever is seen."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return t[:, None, None].expand_as(x_t)


def test_straightness_is_of_flows_alone() -> None:
    data, network = table(), PolicyNetwork(ARCH)
    network.head.velocity = Rising()
    rows = torch.arange(len(data))
    # At the times 0, 1/50 ... 49/50 the velocity is the time, the straight way their mean: the variance is between.
    assert straightness(network, data, rows, limit=7, seed=0) == pytest.approx((50**2 - 1) / 12 / 50**2, abs=1e-6)
    assert straightness(network, data, rows[:0], limit=7, seed=0) is None
    assert straightness(PolicyNetwork(replace(ARCH, head="l1")), data, rows, limit=7, seed=0) is None
