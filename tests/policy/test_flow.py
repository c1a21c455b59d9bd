"""Rectified flow against formulas worked out here, over shapes, step counts and directions."""

import pytest
import torch

from pipeline.policy.flow import RectifiedFlow, integrate, interpolate, straightness
from pipeline.policy.velocity import MlpVelocity, ResidualVelocity


@pytest.mark.parametrize("shape", [(1, 1, 7), (5, 16, 7), (3, 2)])
def test_path_starts_at_noise_and_ends_at_data(shape: tuple[int, ...]) -> None:
    x_0, x_1 = torch.randn(shape), torch.randn(shape)
    assert torch.equal(interpolate(x_0, x_1, torch.zeros(shape[0])), x_0)
    assert torch.equal(interpolate(x_0, x_1, torch.ones(shape[0])), x_1)
    t = torch.rand(shape[0])
    for row in range(shape[0]):
        expected = t[row] * x_1[row] + (1 - t[row]) * x_0[row]
        torch.testing.assert_close(interpolate(x_0, x_1, t)[row], expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_euler_lands_on_a_dirac_target(steps: int) -> None:
    """The flow to a single point x_1 has velocity (x_1 - x) / (1 - t); inverted time would not land there."""
    x_1 = torch.randn(4, 16, 7)

    def velocity(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return (x_1 - x) / (1 - t)[:, None, None]

    landed = integrate(velocity, torch.randn(4, 16, 7), torch.zeros(4, 1), steps)
    torch.testing.assert_close(landed, x_1, atol=1e-5, rtol=1e-5)


def test_euler_visits_equal_times_from_zero() -> None:
    seen: list[float] = []

    def velocity(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        seen.append(float(t[0]))
        return torch.ones_like(x)

    moved = integrate(velocity, torch.zeros(1, 1, 1), torch.zeros(1, 1), 4)
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert float(moved) == 1.0


def test_euler_refuses_no_steps() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        integrate(lambda x, t, c: x, torch.zeros(1, 1), torch.zeros(1, 1), 0)


class _Constant(torch.nn.Module):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.seen = {"x_t": x_t, "t": t}
        return self.value.expand_as(x_t)


def test_loss_is_the_squared_distance_to_data_minus_noise() -> None:
    actions, noise, t = torch.randn(6, 4, 7), torch.randn(6, 4, 7), torch.rand(6)
    network = _Constant(torch.full((1, 1, 1), 0.3))
    loss = RectifiedFlow(network).loss(actions, torch.zeros(6, 2), noise, t)
    expected = [((0.3 - (actions[i] - noise[i])) ** 2).mean() for i in range(6)]
    torch.testing.assert_close(loss, torch.stack(expected))
    torch.testing.assert_close(network.seen["x_t"][2], t[2] * actions[2] + (1 - t[2]) * noise[2])


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_what_is_computed_ahead_of_the_steps_changes_no_action(name: str) -> None:
    torch.manual_seed(0)
    network = {"mlp": MlpVelocity, "residual": ResidualVelocity}[name](3, 7, 8, 64, 2, 16)
    for parameter in network.parameters():  # some begin at zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    x_0, condition = torch.randn(5, 3, 7), torch.randn(5, 8)
    asked: list[float] = []

    def step_by_step(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        asked.append(float(t[0]))
        return network(x, t, c)

    expected = integrate(step_by_step, x_0, condition, 4)
    torch.testing.assert_close(integrate(network, x_0, condition, 4), expected, atol=1e-5, rtol=1e-5)
    assert asked[0] == 0.0 and len(asked) == 4


def test_straightness_is_zero_for_a_line_and_known_for_a_curve() -> None:
    x_0, c = torch.randn(4, 3, 7), torch.zeros(4, 1)
    torch.testing.assert_close(straightness(lambda x, t, c: torch.ones_like(x), x_0, c), torch.zeros(4))
    n = 50  # along dx/dt = t it is the variance of k/n, k = 0 ... n-1
    curved = straightness(lambda x, t, c: t[:, None, None].expand_as(x), x_0, c, n)
    torch.testing.assert_close(curved, torch.full((4,), (n**2 - 1) / (12 * n**2)))


@pytest.mark.slow
def test_learns_two_modes_where_a_mean_would_be_wrong() -> None:
    """Half of the data is at -1, half at +1: samples must be at the modes, not at their mean."""
    torch.manual_seed(0)
    head = RectifiedFlow(MlpVelocity(1, 1, 1, width=64, layers=2, time_dim=16))
    optimizer = torch.optim.Adam(head.parameters(), lr=4e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        actions = torch.randint(0, 2, (256, 1, 1)).float() * 2 - 1
        loss = head.loss(actions, torch.zeros(256, 1), torch.randn(256, 1, 1), torch.rand(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        samples = head.sample(torch.zeros(500, 1), torch.randn(500, 1, 1), steps=50).flatten()
    near = (samples.abs() - 1).abs() < 0.35
    assert near.float().mean() > 0.9
    assert 0.35 < (samples > 0).float().mean() < 0.65
