"""A flow that learns from a trained one's samples takes fewer steps to the same actions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline.errors import DataError
from pipeline.policy import bundle
from pipeline.policy.flow import RectifiedFlow
from pipeline.policy.network import PolicyNetwork
from pipeline.train.data import Batch, Table
from pipeline.train.loop import train
from pipeline.train.reflow import load_teacher
from tests import base
from tests.train.synthetic import ARCH, table

LEARNT = {"tasks": {"libero_spatial": (0, 2)}}
CFG = replace(
    base.params().train_flow,
    action="action",
    epochs=80,
    learning_rate=3e-3,
    batch_size=64,
    warmup_steps=2,
    ema_decay=0.0,
    val_fraction=0.1,
    metrics_every_epochs=1000,
    metrics_rows=40,
    checkpoint_every_epochs=1000,
)
FEATURES = {"encoder": {"model": "tiny"}, "transform": "t"}
CPU, OUT = torch.device("cpu"), Path("runs/student")


def two_ways() -> Table:
    """Actions that are all 0.8 or all -0.8, whatever is seen: the paths to them must bend where they part."""
    made = table(episodes=12, length=32)
    signs = torch.randint(0, 2, (len(made.action), 1), generator=torch.Generator().manual_seed(3)) * 2.0 - 1
    return replace(made, action=(0.8 * signs).expand(-1, 7).contiguous(), keyframes=None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a flow trained on them."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    arch = replace(ARCH, horizon=1, n_action_steps=1, sampling_steps=50)
    network, _ = train(Accelerator(cpu=True), two_ways(), arch, CFG, folder / "work")
    bundle.save(folder / "policy", network, bundle.PolicySpec(arch, FEATURES["encoder"], "none", None, "t", LEARNT, {}))
    return folder / "policy"


def observe(rows: int = 300) -> tuple[dict, torch.Tensor, dict, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    images, joints = torch.randn(rows, 8, generator=generator), torch.randn(rows, 7, generator=generator)
    noise = torch.randn(rows, 1, 7, generator=generator)
    return {"agentview": images}, torch.ones(rows, 4), {"joint_pos": joints}, noise


def error_of_one_step(network: PolicyNetwork, reference: torch.Tensor) -> float:
    return float((network.propose(*observe(), steps=1) - reference).square().mean())


@pytest.mark.slow
def test_one_step_gives_what_many_of_the_teacher_give(teacher: Path, tmp_path: Path) -> None:
    trained = bundle.load(teacher)
    cfg = replace(CFG, teacher=str(teacher), epochs=30, learning_rate=1e-3)
    arch = trained.spec.architecture
    learnt_from = load_teacher(cfg, arch, FEATURES, OUT, CPU)
    assert learnt_from is not None
    student, _ = train(Accelerator(cpu=True), two_ways(), arch, cfg, tmp_path, teacher=learnt_from)
    with torch.no_grad():
        many = trained.network.propose(*observe(), steps=50)
        assert ((many.mean((1, 2)).abs() - 0.8).abs() < 0.3).float().mean() > 0.9, (
            "the teacher goes one way or the other"
        )
        before, after = (error_of_one_step(n, many) for n in (trained.network, student))
        assert after < before / 3, (before, after)
        head, condition = student.head, student.fusion(*student.normaliser.inputs(*observe()[:3]))
        theirs = trained.network.head
        assert isinstance(head, RectifiedFlow) and isinstance(theirs, RectifiedFlow)
        their_condition = trained.network.fusion(*trained.network.normaliser.inputs(*observe()[:3]))
        bent = theirs.straightness(their_condition, observe()[3]).mean()
        assert head.straightness(condition, observe()[3]).mean() < bent / 2


def test_a_student_with_keyframes_begins_with_its_teacher_too(teacher: Path, tmp_path: Path) -> None:
    """The bundle has no keyframes; as in every experiment that names a teacher, the student learns them."""
    arch = bundle.load(teacher).spec.architecture
    cfg = replace(CFG, teacher=str(teacher), keyframe_weight=0.5, epochs=1, learning_rate=1e-9)
    data = replace(two_ways(), keyframes=torch.randn(12 * 32, 6))
    student, _ = train(
        Accelerator(cpu=True), data, arch, cfg, tmp_path, teacher=load_teacher(cfg, arch, FEATURES, OUT, CPU)
    )
    assert student.keyframes is not None
    theirs = bundle.load(teacher).network.head.velocity.net[0].weight
    torch.testing.assert_close(student.head.velocity.net[0].weight, theirs, atol=1e-5, rtol=0)


def test_a_student_of_another_build_starts_afresh(teacher: Path) -> None:
    arch = bundle.load(teacher).spec.architecture
    cfg = replace(CFG, teacher=str(teacher))
    made = load_teacher(cfg, arch, FEATURES, OUT, CPU)
    assert made is not None
    alike, other = PolicyNetwork(replace(arch, sampling_steps=1)), PolicyNetwork(replace(arch, head_network="residual"))
    assert made.start(alike) and not made.start(other)
    assert torch.equal(alike.head.velocity.net[0].weight, made.bundle.network.head.velocity.net[0].weight)


@pytest.mark.parametrize(("asked", "taken"), [(3, 3), (None, 50)])
def test_a_teacher_is_sampled_in_the_steps_asked_for(teacher: Path, asked: int | None, taken: int) -> None:
    cfg = replace(CFG, teacher=str(teacher), teacher_steps=asked)
    made = load_teacher(cfg, bundle.load(teacher).spec.architecture, FEATURES, OUT, CPU)
    assert made is not None
    images, text, proprio, noise = observe(4)
    batch = Batch(images, text, proprio, torch.zeros(4, 1, 7))
    with torch.no_grad():
        three, fifty = (made.bundle.network.propose(images, text, proprio, noise, n) for n in (3, 50))
    assert torch.equal(made.actions(batch, noise), three if taken == 3 else fifty) and not torch.equal(three, fifty)


@pytest.mark.parametrize(
    ("changes", "features", "said"),
    [
        ({"horizon": 2}, FEATURES, r"its horizon is 1, and 2 is needed"),
        ({"proprio": ()}, FEATURES, r"its proprio is \('joint_pos',\), and \(\) is needed"),
        ({}, {**FEATURES, "encoder": {"model": "other"}}, r"its encoder is .*tiny.*, and .*other.* is needed"),
        ({}, {**FEATURES, "transform": "u"}, r"its transform is t, and u is needed"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher: Path, changes: dict, features: dict, said: str) -> None:
    cfg = replace(CFG, teacher=str(teacher))
    arch = replace(bundle.load(teacher).spec.architecture, **changes)
    with pytest.raises(DataError, match=said):
        load_teacher(cfg, arch, features, OUT, CPU)


def test_a_teacher_that_learnt_from_what_is_held_out_is_refused(teacher: Path) -> None:
    cfg = replace(CFG, teacher=str(teacher), held_out_tasks={"libero_spatial": (1, 2)})
    with pytest.raises(DataError, match=r"it learnt from task \[2\] of libero_spatial, which"):
        load_teacher(cfg, bundle.load(teacher).spec.architecture, FEATURES, OUT, CPU)


def test_no_teacher_is_needed_for_demonstrations_and_a_missing_one_is_named(tmp_path: Path) -> None:
    assert load_teacher(CFG, ARCH, FEATURES, OUT, CPU) is None
    with pytest.raises(DataError, match=r"nowhere.policy\.json: not found"):
        load_teacher(replace(CFG, teacher="nowhere"), ARCH, FEATURES, OUT, CPU)


def test_a_teacher_of_tuned_features_or_in_the_way_is_refused(teacher: Path, tmp_path: Path) -> None:
    loaded = bundle.load(teacher)
    bundle.save(tmp_path / "policy", loaded.network, replace(loaded.spec, tune="lora"), {"x": torch.zeros(1)})
    arch = loaded.spec.architecture
    cfg = replace(CFG, teacher=str(tmp_path / "policy"))
    with pytest.raises(DataError, match="its tune is lora, and none is needed"):
        load_teacher(cfg, arch, FEATURES, OUT, CPU)
    with pytest.raises(DataError, match="training is about to replace it"):
        load_teacher(cfg, arch, FEATURES, tmp_path, CPU)
