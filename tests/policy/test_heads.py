"""Every action head: learns what it is shown, is determined by its noise; and each by what is particular to it."""

import itertools
import math
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import nn

from pipeline.policy.diffusion import Diffusion
from pipeline.policy.head import Head
from pipeline.policy.network import make_head
from pipeline.policy.regression import KL_WEIGHT, Cvae
from pipeline.policy.settings import NOISE_LEVELS, HeadName
from pipeline.policy.tokens import BINS, ActionTokens, bins
from tests import base
from tests.imports import ROOT

H, A, C = 3, 7, 5
EVERY = [("flow", "mlp"), ("flow", "residual"), ("diffusion", "residual")]
EVERY += [(name, "mlp") for name in ("l1", "l2", "cvae", "tokens")]


def test_every_head_is_tested() -> None:
    assert {name for name, _ in EVERY} == set(get_args(HeadName))


def test_every_head_is_told_of_and_compared() -> None:
    section = (ROOT / "docs/heads.md").read_text().partition("## Heads")[2].partition("## ")[0]
    compared = yaml.safe_load((ROOT / "configs/comparison/heads.yaml").read_text())["policies"].values()
    heads = {changes.get("policy.head", "flow") for changes in compared}
    for name in get_args(HeadName):
        assert f"`{name}`" in section, f"docs/heads.md has no line for the head {name}"
        assert name in heads, f"configs/comparison/heads.yaml does not compare the head {name}"


def make(head: str, velocity: str = "mlp", **changes: Any) -> Head:
    sizes = {"condition_dim": C, "horizon": H, "n_action_steps": 1, "head_network": velocity}
    return make_head(base.architecture(head=head, **{**sizes, "standardise_actions": False, **changes}))


def fit(head: Head, target: Any, steps: int, rate: float = 3e-3, horizon: int = H) -> None:
    """Train on actions target(condition) of random conditions."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        condition = torch.randn(128, C, generator=generator)
        noise = torch.randn(128, horizon, A, generator=generator)
        loss = head.loss(target(condition, generator), condition, noise, torch.rand(128, generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()


@pytest.mark.parametrize(("name", "velocity"), EVERY)
def test_the_same_noise_gives_the_same_loss_and_actions(name: str, velocity: str) -> None:
    torch.manual_seed(0)
    head = make(name, velocity)
    actions, condition = torch.rand(6, H, A) * 2 - 1, torch.randn(6, C)
    noise, u = torch.randn(6, H, A), torch.rand(6)
    loss = head.loss(actions, condition, noise, u)
    assert loss.shape == (6,) and torch.isfinite(loss).all()
    torch.testing.assert_close(head.loss(actions, condition, noise, u), loss, rtol=0, atol=0)
    sample = head.sample(condition, noise, 5)
    assert sample.shape == (6, H, A)
    torch.testing.assert_close(head.sample(condition, noise, 5), sample, rtol=0, atol=0)
    # A row knows of no other: rows alone give what they give together.
    torch.testing.assert_close(head.loss(actions[2:3], condition[2:3], noise[2:3], u[2:3]), loss[2:3])
    torch.testing.assert_close(head.sample(condition[2:3], noise[2:3], 5), sample[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "velocity"), EVERY)
def test_it_learns_actions_that_follow_from_the_condition(name: str, velocity: str) -> None:
    torch.manual_seed(0)
    mixing = torch.randn(C, H * A) / 3

    def target(condition: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.sin(condition @ mixing).unflatten(1, (H, A)) * 0.9

    head = make(name, velocity)
    fit(head, target, 250 if name == "tokens" else 600)
    generator = torch.Generator().manual_seed(2)
    condition = torch.randn(256, C, generator=generator)
    with torch.no_grad():
        found = head.sample(condition, torch.randn(256, H, A, generator=generator), 20)
    error = (found - target(condition, generator)).abs().mean()
    spread = target(condition, generator).std()
    # A constant would err by 0.87 of the spread.
    assert error < 0.4 * spread, f"{error:.3f} of a spread of {spread:.3f}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow", "diffusion", "tokens", "l2"])
def test_two_modes_are_kept_by_all_but_regression(name: str) -> None:
    """The expert goes left or right, never straight on: the mean of both is what must not be done."""

    def target(condition: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        side = torch.randint(0, 2, (len(condition), 1, 1), generator=generator) * 1.6 - 0.8
        return side.expand(-1, 1, A)

    torch.manual_seed(0)
    head = make(name, "residual", horizon=1)
    fit(head, target, 700, horizon=1)
    with torch.no_grad():
        # Under one condition for all, only the noise can make the choice.
        conditions = torch.randn(400, C) if name == "l2" else torch.randn(1, C).expand(400, C)
        actions = head.sample(conditions, torch.randn(400, 1, A), 50)
    # Tokens decide for each component by itself: half of a hand may go left and half of it right.
    found = actions.flatten() if name == "tokens" else actions.mean((1, 2))
    at_a_mode = ((found.abs() - 0.8).abs() < 0.25).float().mean()
    if name == "l2":
        assert found.abs().max() < 0.3, "the mean, which nobody showed it"
        return
    assert at_a_mode > 0.9
    if name != "tokens":  # which takes the likeliest
        assert 0.3 < (found > 0).float().mean() < 0.7, "both ways are gone, by the noise"


class Oracle(nn.Module):
    """Knows x_1, and so the noise in x: alpha_bar of Nichol and Dhariwal's cosine schedule, worked out here."""

    def __init__(self, x_1: torch.Tensor) -> None:
        super().__init__()
        self.x_1 = x_1
        shape = [math.cos((i / NOISE_LEVELS + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(NOISE_LEVELS + 1)]
        kept = [1 - min(1 - b / a, 0.999) for a, b in itertools.pairwise(shape)]
        self.alpha_bar = torch.tensor(kept).cumprod(0)

    def forward(self, x: torch.Tensor, level: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        bar = self.alpha_bar[(level * NOISE_LEVELS).round().long()][:, None, None]
        return (x - bar.sqrt() * self.x_1) / (1 - bar).sqrt()


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_ddim_lands_on_a_dirac_target_from_the_highest_level(steps: int) -> None:
    x_1 = torch.rand(4, H, A) * 1.8 - 0.9
    oracle, levels = Oracle(x_1), []
    oracle.register_forward_pre_hook(lambda _, given: levels.append(round(float(given[1][0]) * NOISE_LEVELS)))
    found = Diffusion(oracle).sample(torch.zeros(4, C), torch.randn(4, H, A), steps)
    torch.testing.assert_close(found, x_1, atol=1e-2, rtol=0)
    assert levels == [NOISE_LEVELS - 1 - k * NOISE_LEVELS // steps for k in range(steps)], (
        "pure noise is the last level"
    )


def test_ddim_refuses_steps_that_miss_levels() -> None:
    head = make("diffusion")
    for steps in (0, 3, 60, 101):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            head.sample(torch.zeros(1, C), torch.randn(1, H, A), steps)


def test_the_oracle_has_no_diffusion_loss() -> None:
    x_1 = torch.rand(64, H, A) * 2 - 1
    loss = Diffusion(Oracle(x_1)).loss(x_1, torch.zeros(64, C), torch.randn(64, H, A), torch.rand(64))
    assert loss.max() < 1e-3


def test_the_cvae_pays_for_what_the_latent_tells() -> None:
    torch.manual_seed(0)
    head = make("cvae")
    assert isinstance(head, Cvae)
    actions, condition, noise = torch.rand(9, H, A), torch.randn(9, C), torch.randn(9, H, A)
    mean, log_variance = head.posterior(torch.cat([actions.flatten(1), condition], 1)).chunk(2, 1)
    told = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(told, torch.distributions.Normal(0.0, 1.0)).sum(1)
    z = mean + told.stddev * noise.flatten(1)[:, : mean.shape[1]]
    decoded = head.decoder(torch.cat([z, condition], 1)).view(9, H, A)
    expected = (decoded - actions).abs().mean((1, 2)) + KL_WEIGHT * divergence
    torch.testing.assert_close(head.loss(actions, condition, noise, torch.rand(9)), expected)


def test_bins_cover_the_range_and_are_narrow() -> None:
    values = torch.tensor([-1.0, -0.9999, 0.0, 0.9999, 1.0, 2.0, -3.0]).view(1, 1, 7)
    assert bins(values).flatten().tolist() == [0, 0, 128, 255, 255, 255, 0]
    head = make("tokens")
    assert isinstance(head, ActionTokens)
    actions = torch.rand(50, H, A) * 2 - 1
    assert (head.centres[bins(actions)] - actions).abs().max() <= 1 / BINS + 1e-6


def test_an_untrained_token_head_is_as_unsure_as_may_be() -> None:
    head = make("tokens")
    loss = head.loss(torch.rand(64, H, A), torch.randn(64, C), torch.randn(64, H, A), torch.rand(64)).mean()
    assert loss.item() == pytest.approx(math.log(BINS), rel=0.05)


def test_time_and_condition_modulate() -> None:
    """The blocks begin as the identity; once that is over, everything that goes in matters."""
    torch.manual_seed(0)
    network: Any = make("flow", "residual")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, t, c = torch.randn(2, H, A), torch.tensor([0.2, 0.7]), torch.randn(2, C)
    before = network.velocity(x, t, c)
    for changed in ((x + 1, t, c), (x, t + 0.1, c), (x, t, c + 1)):
        assert (network.velocity(*changed) - before).abs().max() > 1e-3
    assert (network.velocity(x.flip(1), t, c) - before.flip(1)).abs().max() > 1e-3, "actions know their place"
