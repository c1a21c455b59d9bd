"""What is random in a step."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline.policy.fusion import Fusion
from pipeline.policy.normaliser import Noise, Standardiser
from pipeline.train.images import ResidentImages
from pipeline.train.loop import train
from pipeline.train.update import draw_views, noise_levels
from tests.train.synthetic import ARCH, table
from tests.train.test_loop import CFG


def uniform_noise(shape: tuple[int, ...], std: float, seed: int) -> torch.Tensor:
    """The noise that a step adds to features of mean 0 and spread 1."""
    levels = noise_levels(shape, torch.Generator().manual_seed(seed))
    return Standardiser(*shape[1:]).noisy(torch.zeros(shape), Noise.of(levels, std))


def test_feature_noise_reaches_fusion_with_its_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, first = Fusion.forward, list[torch.Tensor]()
    for noise in (0.0, 0.2):
        seen: list[torch.Tensor] = []

        def noting(self: Fusion, images: dict, *rest: object, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(images["agentview"].detach().clone())
            return forward(self, images, *rest)

        monkeypatch.setattr(Fusion, "forward", noting)
        arch = replace(ARCH, feature_noise=noise)
        train(Accelerator(cpu=True), table(), arch, replace(CFG, epochs=1), tmp_path / str(noise))
        first.append(seen[0])
    clean, noisy = first
    difference = noisy - clean
    assert abs(clean.std() - 1) < 0.2, "standardised"
    assert abs(difference.std() - 0.2) < 0.03 and difference.abs().max() <= 0.2 * 3**0.5 + 1e-5, "uniform"


def test_views_are_drawn_evenly_and_for_each_camera_by_itself() -> None:
    drawn = draw_views(3, ("a", "b"), (4000, 2), torch.Generator().manual_seed(1))
    for views in drawn.values():
        assert views.shape == (4000, 2)
        share = torch.bincount(views.flatten(), minlength=3) / views.numel()
        assert len(share) == 3 and (share - 1 / 3).abs().max() < 0.02
    a, b = (views.flatten().float() for views in drawn.values())
    observations = drawn["a"].float().T
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.05
    assert torch.corrcoef(observations)[0, 1].abs() < 0.06


def test_views_are_drawn_alike_in_each_run_and_learnt_from(tmp_path: Path) -> None:
    """View 0 is blank: what differs from a training on blank frames alone was learnt from view 1."""
    seen = table().images.at(torch.arange(len(table())))["agentview"]
    blank = torch.zeros_like(seen)

    def learnt(run: str, images: ResidentImages) -> torch.Tensor:
        shown = replace(table(), images=images)
        return train(Accelerator(cpu=True), shown, ARCH, replace(CFG, epochs=1), tmp_path / run)[0].fusion.mlp[0].weight

    of_views = learnt("views", ResidentImages({"agentview": torch.stack([blank, seen], 1)}, views=2))
    again = learnt("again", ResidentImages({"agentview": torch.stack([blank, seen], 1)}, views=2))
    of_blank = learnt("blank", ResidentImages({"agentview": blank}))
    assert torch.equal(of_views, again)
    assert not torch.equal(of_views, of_blank)


def test_feature_noise_has_the_spread_that_was_asked_for() -> None:
    noise = uniform_noise((401, 7, 97), 0.3, 5)
    assert abs(noise.mean()) < 0.002
    assert abs(noise.std() - 0.3) < 0.001
    assert torch.equal(noise, uniform_noise((401, 7, 97), 0.3, 5))
    values, counts = noise.unique(return_counts=True)
    assert len(values) == 256, "every byte is drawn"
    assert abs(counts.float() / counts.float().mean() - 1).max() < 0.15, "each as often"


def test_neighbours_in_feature_noise_do_not_depend_on_each_other() -> None:
    noise = uniform_noise((40000, 16), 1.0, 6)
    correlation = torch.corrcoef(noise.T) - torch.eye(16)
    assert correlation.abs().max() < 0.03


def test_noise_summed_over_channels_is_normal() -> None:
    sums = uniform_noise((50000, 384), 1.0, 7).sum(1) / 384**0.5
    assert abs((sums**4).mean() - 3) < 0.1, "the kurtosis of a normal distribution"


def test_a_step_that_fp16_leaves_out_moves_neither_schedule_nor_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose every second step is left out has the schedule of half as many steps."""
    rates: list[list[float]] = []
    step = torch.optim.lr_scheduler.LRScheduler.step
    for skipped in (False, True):
        made: list[float] = []

        def note(self: torch.optim.lr_scheduler.LRScheduler, *args: object, made: list[float] = made) -> None:
            step(self)
            made.append(self.get_last_lr()[0])

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.lr_scheduler.LambdaLR, "step", note)
            if skipped:
                turns = itertools.cycle((True, False))
                patch.setattr(
                    Accelerator, "optimizer_step_was_skipped", property(lambda self, turns=turns: next(turns))
                )
            train(Accelerator(cpu=True), table(), ARCH, replace(CFG, epochs=2), tmp_path / str(skipped))
        rates.append(made)
    whole, half = rates
    assert half == whole[: len(half)] and len(half) == 1 + (len(whole) - 1) // 2
