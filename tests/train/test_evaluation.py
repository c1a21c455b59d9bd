"""Action errors against ones worked out by hand."""

from dataclasses import replace

import pytest
import torch

from pipeline.policy.network import FlowPolicy
from pipeline.train.evaluation import action_error
from tests.train.synthetic import ARCH, table


class Constant(FlowPolicy):
    """Gives the same action, whatever it sees."""

    def act(self, images, text, proprio, noise, steps=None):
        return torch.full_like(noise, 0.25)


def test_each_dimension_has_its_own_error() -> None:
    data = table()
    rows = torch.arange(len(data))
    mse, mae = action_error(Constant(replace(ARCH, horizon=1, execute=1)), data, rows, limit=10**6, seed=0)
    torch.testing.assert_close(mse, (data.action - 0.25).double().square().mean(0))
    torch.testing.assert_close(mae, (data.action - 0.25).double().abs().mean(0))
    few, _ = action_error(Constant(replace(ARCH, horizon=1, execute=1)), data, rows, limit=2, seed=0)
    torch.testing.assert_close(few, (data.action[[0, -1]] - 0.25).double().square().mean(0))
    assert few[0] != pytest.approx(float(mse[0]))
