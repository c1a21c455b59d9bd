"""The reference's parameter table, standardisation, windows, and the bundle's round trip and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config.compose import compose
from pipeline.config.load import from_dict
from pipeline.errors import DataError
from pipeline.policy import bundle
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.policy.normaliser import BLOCK, Moments, Noise, Normaliser, Standardiser
from pipeline.policy.velocity import sinusoid
from pipeline.policy.windows import action_windows, next_changes, past_rows
from tests import base

REFERENCE_TABLE = {"joint_pos": 3.6e3, "ee_pose": 3.6e3, "fusion": 1.3e6, "velocity": 3.0e6, "total": 4.3e6}


def reference_architecture() -> Architecture:
    import yaml

    tree = yaml.safe_load(compose(["experiment=single_task_overfit"]))
    return Architecture.of(from_dict(tree).policy, image_dim=512, text_dim=512)


def small_architecture(**changes: Any) -> Architecture:
    sizes = {"image_dim": 6, "text_dim": 5, "condition_dim": 8, "token_width": 64, "head_width": 16, "time_dim": 4}
    inputs = {"cameras": ("agentview", "eye_in_hand"), "proprio": ("joint_pos", "gripper")}
    return base.architecture(**{**sizes, **inputs, "horizon": 3, "sampling_steps": 4, **changes})


class Still(nn.Module):
    """A velocity of zero: what is noise stays noise."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x_t)


def inputs(arch: Architecture, rows: int) -> tuple[dict, torch.Tensor, dict]:
    dims = {"joint_pos": 7, "ee_pose": 7, "gripper": 2}
    return (
        {c: torch.randn(rows, *arch.image_shape) for c in arch.cameras},
        torch.randn(rows, arch.text_dim),
        {p: torch.randn(rows, *([arch.n_obs_steps] if arch.n_obs_steps > 1 else []), dims[p]) for p in arch.proprio},
    )


def test_trainable_parameters_are_within_5_percent_of_the_reference() -> None:
    counts = PolicyNetwork(reference_architecture()).parameter_counts()
    for name, expected in REFERENCE_TABLE.items():
        assert abs(counts[name] - expected) / expected < 0.05, (name, counts[name], expected)


def test_quickstart_differs_from_the_reference_only_where_it_says() -> None:
    quick = base.params().policy
    assert quick.cameras == ("agentview", "eye_in_hand")
    assert (quick.horizon, quick.n_action_steps) == (16, 8)
    reference = reference_architecture()
    assert (reference.cameras, reference.horizon, reference.sampling_steps) == (("agentview",), 1, 50)


def moments(rows: torch.Tensor, parts: tuple[int, ...] = (1, 99)) -> Moments:
    """Return the moments of rows that come in parts, the last one as large as is left."""
    made = Moments()
    for part in rows.split([*parts, len(rows) - sum(parts)]):
        made.add(part)
    return made


def test_moments_are_those_of_all_parts_together() -> None:
    rows = 1000 + torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    for parts in ((1, 99), (250,), ()):
        made = moments(rows, parts)
        torch.testing.assert_close(made.mean, rows.double().mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(made.std, rows.double().std(0, correction=0), rtol=1e-9, atol=0)


def test_standardiser_gives_zero_mean_unit_spread_and_inverts() -> None:
    rows = torch.randn(1000, 3) * torch.tensor([1.0, 0.2, 0.0]) + torch.tensor([5.0, -1.0, 2.0])
    module = Standardiser(3)
    module.fit(moments(rows))
    scaled = module(rows)
    torch.testing.assert_close(scaled[:, :2].mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled[:, :2].std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert scaled[:, 2].abs().max() < 1e-3, "a constant dimension is zero, not noise"
    torch.testing.assert_close(module.inverse(scaled), rows)


@pytest.mark.parametrize("standardise", [True, False])
def test_the_flow_loss_is_in_standardised_or_in_the_environments_units(standardise: bool) -> None:
    torch.manual_seed(0)
    arch = small_architecture(standardise_actions=standardise)
    network = PolicyNetwork(arch)
    images, text, proprio = inputs(arch, 512)
    spread = torch.tensor([0.4, 0.3, 0.4, 0.02, 0.07, 0.05, 1.0])
    actions = 0.1 + spread * torch.randn(512, 3, 7)
    network.normaliser.fit(
        {name: moments(x) for name, x in images.items()},
        {name: moments(x) for name, x in proprio.items()},
        moments(actions.flatten(0, 1)),
    )
    network.head.velocity = Still()
    noise = torch.randn(512, 3, 7)
    loss = network(images, text, proprio, actions, noise, torch.rand(512)).mean()
    # The velocity x_1 - x_0 of independent noise and action has the variance of both together.
    expected = 2.0 if standardise else 1 + float((spread**2 + 0.01).mean())
    assert loss.item() == pytest.approx(expected, rel=0.05)
    still = network.act(images, text, proprio, noise)
    scale, shift = (actions.flatten(0, 1).std(0), actions.flatten(0, 1).mean(0)) if standardise else (1, 0)
    torch.testing.assert_close(still, (noise * scale + shift).clamp(-1, 1), atol=5e-3, rtol=0)


def test_one_instruction_is_not_standardised_away() -> None:
    normaliser = Normaliser({}, {}, 7, standardise_actions=True)
    text = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(normaliser.inputs({}, text, {})[1], text / (12.5**0.5))


def test_patches_are_standardised_each_by_itself() -> None:
    """Three patches that differ by what is always there: one alive, one not, one next to not."""
    background = torch.tensor([0.0, 50.0, -3.0])[:, None]
    spread = torch.tensor([1.0, 0.0, 0.001])[:, None]
    frames = background + spread * torch.randn(2000, 3, 4, generator=torch.Generator().manual_seed(0))
    normaliser = Normaliser({"agentview": (3, 4)}, {}, 7, standardise_actions=True)
    normaliser.fit({"agentview": moments(frames)}, {}, moments(torch.zeros(100, 7), ()))
    for history in ((), (2,)):
        seen = frames[:1000].reshape(-1, *history, 3, 4)
        made = normaliser.inputs({"agentview": seen}, torch.ones(len(seen), 2), {})[0]["agentview"]
        made = made.reshape(1000, 3, 4)
        assert made.mean((0, 2)).abs().max() < 0.05, "the background is gone"
        alive, dead, next_to_dead = made.std((0, 2)).tolist()
        assert alive == pytest.approx(1, rel=0.05)
        assert dead < 1e-3 and next_to_dead < 0.05, "what hardly varies is not blown up"
    with pytest.raises(ValueError, match=r"\(1, 4\) does not end in \(3, 4\)"):
        normaliser.inputs({"agentview": frames[:1, 0]}, torch.ones(1, 2), {})


@pytest.mark.parametrize("rows", [1, 2 * BLOCK // 12 + 1])  # one block; two and a little
@pytest.mark.parametrize("tuned", [False, True])
def test_noise_is_added_to_what_is_standardised(rows: int, tuned: bool) -> None:
    torch.manual_seed(0)
    module = Standardiser(3, 4)
    module.mean.copy_(torch.randn(3, 4))
    module.std.copy_(torch.rand(3, 4) + 0.1)
    x = torch.randn(rows, 3, 4).half().requires_grad_(tuned)
    levels = torch.randint(-128, 128, x.shape, dtype=torch.int8)
    noise = Noise.of(levels, 0.3)
    expected = (x.float() - module.mean) / module.std + (levels.double() + 0.5).float() * noise.step
    torch.testing.assert_close(module.noisy(x, noise), expected, rtol=0, atol=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = module.noisy(x, noise)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, module.noisy(x, noise).bfloat16())
    assert half.requires_grad == tuned
    with pytest.raises(ValueError, match="does not end in"):
        module.noisy(x[:, 0], Noise(levels[:, 0], 0.1))


def test_the_gripper_next_changes_where_its_command_does() -> None:
    """Two episodes: one closes, opens and closes; the other begins closed, and opens with its last row."""
    gripper = torch.tensor([-1, -1, 1, 1, -1, 1, 1.0, 1, 1, -1.0])
    last = torch.tensor([6] * 7 + [9] * 3)
    first, second = next_changes(gripper, last).T.tolist()
    assert first == [2, 2, 4, 4, 5, 6, 6, 9, 9, 9]
    assert second == [4, 4, 5, 5, 6, 6, 6, 9, 9, 9]


def test_sinusoid_tells_close_times_apart_and_is_bounded() -> None:
    codes = sinusoid(torch.tensor([0.0, 0.01, 0.5, 1.0]), 16)
    assert codes.abs().max() <= 1
    assert (codes[0] - codes[1]).norm() > 0.5
    torch.testing.assert_close(codes[0], torch.tensor([0.0] * 8 + [1.0] * 8))


def test_windows_repeat_the_last_action_of_their_own_episode() -> None:
    actions = torch.arange(6.0)[:, None].repeat(1, 7)  # episodes: rows 0-3 and 4-5
    last = torch.tensor([3, 3, 3, 3, 5, 5])
    windows = action_windows(actions, last, torch.tensor([0, 2, 5]), 3)
    assert windows[:, :, 0].tolist() == [[0, 1, 2], [2, 3, 3], [5, 5, 5]]


def test_observations_are_so_many_steps_apart_and_begin_with_the_episode() -> None:
    first = torch.tensor([0, 0, 0, 0, 0, 0, 6, 6])
    assert past_rows(first, 3, 2).tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 5], [6, 6, 6], [6, 6, 7],
    ]  # fmt: skip


@pytest.mark.parametrize("n_obs_steps", [1, 3])
@pytest.mark.parametrize("patches", [None, 4])
def test_every_input_reaches_the_action(patches: int | None, n_obs_steps: int) -> None:
    """Each patch of each look of each camera, each look at each signal, and the order of both."""
    torch.manual_seed(0)
    arch = small_architecture(patches=patches, n_obs_steps=n_obs_steps)
    network = PolicyNetwork(arch).eval()
    images, text, proprio = inputs(arch, 1)
    noise = torch.randn(1, 3, 7)
    before = network.act(images, text, proprio, noise)
    for group in (images, proprio):
        for name, values in group.items():
            tokens = values.reshape(-1, values.shape[-1])
            several = [tokens.flip(0)] if len(tokens) > 1 else []
            each = torch.eye(len(tokens))[:, :, None]
            for other in [*(tokens + one for one in each), *several]:
                changed = {**group, name: other.reshape(values.shape)}
                args = (changed, text, proprio) if group is images else (images, text, changed)
                assert not torch.allclose(before, network.act(*args, noise), atol=1e-7), name
    assert not torch.equal(before, network.act(images, text.flip(1), proprio, noise))
    assert not torch.equal(before, network.act(images, text, proprio, noise + 1))
    assert before.abs().max() <= 1


def spec(arch: Architecture) -> bundle.PolicySpec:
    return bundle.PolicySpec(
        arch, {"model": "tiny"}, "none", None, "transform-1", {"stores": {"libero_spatial": "abc"}}, {"git": None}
    )


@pytest.mark.parametrize("changes", [{}, {"patches": 4, "n_obs_steps": 2}])
def test_bundle_round_trip_acts_the_same(tmp_path: Path, changes: dict) -> None:
    arch = small_architecture(**changes)
    network = PolicyNetwork(arch)
    network.normaliser.action.fit(moments(torch.randn(50, 7) * 0.3, ()))
    bundle.save(tmp_path / "policy", network, spec(arch))
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == ["policy.json", "weights.safetensors"]
    loaded = bundle.load(tmp_path / "policy")
    assert loaded.spec == spec(arch)
    images, text, proprio = inputs(arch, 2)
    noise = torch.randn(2, 3, 7)
    actions = loaded.network.act(images, text, proprio, noise)
    assert torch.equal(actions, network.eval().act(images, text, proprio, noise))


def test_bundle_refuses_what_is_missing_damaged_or_foreign(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    with pytest.raises(DataError, match=r"policy\.json: not found.*dvc repro train_flow"):
        bundle.load(path)
    arch = small_architecture()
    bundle.save(path, PolicyNetwork(arch), spec(arch))
    weights = (path / "weights.safetensors").read_bytes()
    (path / "weights.safetensors").write_bytes(weights[:-100])
    with pytest.raises(DataError, match=r"weights\.safetensors"):
        bundle.load(path)
    tree = json.loads((path / "policy.json").read_text())
    (path / "policy.json").write_text(json.dumps({**tree, "version": 99}))
    with pytest.raises(DataError, match=f"version {bundle.VERSION}"):
        bundle.load(path)
    del tree["encoder"]
    (path / "policy.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="has changed since it was written"):
        bundle.load(path)
