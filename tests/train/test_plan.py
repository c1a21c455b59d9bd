"""Orders, seeds, schedule and splits: functions of the settings alone."""

from dataclasses import replace

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.train.data import Episode, split_by_episode
from pipeline.train.plan import accumulation_steps, epoch_batches, learning_rate_factor, row_counts, step_seed
from tests import base

CFG = base.params().train_flow


def test_an_epoch_has_every_row_once_and_its_own_order() -> None:
    rows = torch.arange(100, 203)
    first = torch.cat(list(epoch_batches(rows, 16, seed=0, epoch=0)))
    assert sorted(first.tolist()) == rows.tolist()
    assert torch.equal(first, torch.cat(list(epoch_batches(rows, 16, seed=0, epoch=0))))
    assert not torch.equal(first, torch.cat(list(epoch_batches(rows, 16, seed=0, epoch=1))))
    assert not torch.equal(first, torch.cat(list(epoch_batches(rows, 16, seed=1, epoch=0))))
    assert [len(b) for b in epoch_batches(rows, 16, 0, 0)] == [16] * 6 + [7]


def test_without_balance_each_training_row_comes_once() -> None:
    counts = row_counts(torch.tensor([1, 2, 5]), torch.tensor([0, 0, 0, 1, 1, 1]), "none", seed=0, epoch=0)
    assert counts.tolist() == [0, 1, 1, 0, 0, 1]


def test_balanced_tasks_come_equally_often_and_no_row_is_left_out_for_long() -> None:
    tasks = torch.arange(3).repeat_interleave(torch.tensor([50, 11, 200]))
    rows = torch.arange(2, 260)
    epochs = [row_counts(rows, tasks, "task", seed=0, epoch=e) for e in range(40)]
    for counts in epochs:
        assert counts.sum() == len(rows) and counts[:2].sum() == 0 and counts[260:].sum() == 0
        assert [int(counts[tasks == k].sum()) for k in range(3)] == [86, 86, 86]
        assert set(counts[tasks == 0][2:].tolist()) == {1, 2} and set(counts[tasks == 1].tolist()) == {7, 8}
        left_out = (counts[tasks == 2][:199] == 0).nonzero().flatten()
        assert left_out.diff().max() <= 2, "evenly spread"
    total = torch.stack(epochs).sum(0)[rows]
    assert total.min() > 5, "which rows come more often changes from epoch to epoch"
    assert torch.equal(epochs[3], row_counts(rows, tasks, "task", seed=0, epoch=3))


def test_step_seeds_do_not_collide() -> None:
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(1000)}
    assert len(seeds) == 20_000
    assert all(0 <= s < 2**63 for s in seeds)


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)


@pytest.mark.parametrize(("processes", "micro", "expected"), [(1, None, 1), (2, None, 1), (1, 32, 4), (2, 32, 2)])
def test_accumulation_follows_from_the_global_batch(processes: int, micro: int | None, expected: int) -> None:
    assert accumulation_steps(replace(CFG, batch_size=128, microbatch_size=micro), processes) == expected


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="128 is not a multiple of 3 processes"):
        accumulation_steps(replace(CFG, batch_size=128, microbatch_size=None), 3)


def episodes(counts: dict[int, int], length: int = 5) -> list[Episode]:
    made: list[Episode] = []
    for task, count in counts.items():
        for i in range(count):
            made.append(Episode("libero_spatial", task, f"demo_{i}", len(made) * length, length))
    return made


def test_split_holds_out_whole_episodes_of_every_task() -> None:
    made = episodes({0: 10, 1: 20})
    train, val = split_by_episode(made, 0.1, seed=0)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(150))
    held = {row // 5 for row in val.tolist()}
    assert len(val) == 5 * len(held), "an episode is on one side only"
    assert [sum(made[i].task == t for i in held) for t in (0, 1)] == [1, 2]


def test_split_of_a_task_does_not_depend_on_other_tasks() -> None:
    alone = split_by_episode(episodes({0: 10}), 0.2, seed=3)[1]
    together = split_by_episode(episodes({0: 10, 5: 8}), 0.2, seed=3)[1]
    assert alone.tolist() == [row for row in together.tolist() if row < 50]


def test_no_validation_when_none_is_asked_for_or_possible() -> None:
    assert len(split_by_episode(episodes({0: 10}), 0.0, seed=0)[1]) == 0
    train, val = split_by_episode(episodes({0: 1}), 0.5, seed=0)
    assert (len(train), len(val)) == (5, 0)
