"""Rates and intervals, against published figures and against the equation that Wilson's interval solves."""

import math

import pytest

from pipeline.rollout.metrics import headline, held_out, paired, rates, summary, timings, whether_it_looks, wilson
from tests.rollout.make import record


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(450, 500, 0.871, 0.923), (485, 500, 0.951, 0.982), (9, 10, 0.596, 0.982)],
)
def test_wilson_gives_known_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=0.0005)


@pytest.mark.parametrize("n", [1, 2, 7, 20, 500])
def test_wilson_ends_are_z_standard_errors_from_the_observed_rate(n: int) -> None:
    for successes in range(0, n + 1, max(1, n // 7)):
        low, high = wilson(successes, n) or (math.nan, math.nan)
        assert 0 <= low <= successes / n <= high <= 1
        for end in (low, high):
            if 0 < end < 1:
                assert abs(successes / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n))


def test_wilson_of_nothing_is_no_interval_and_nonsense_is_refused() -> None:
    assert wilson(0, 0) is None
    for successes, n in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError):
            wilson(successes, n)


def test_errors_of_the_policy_are_failures_and_others_are_in_no_rate_but_the_worst_case() -> None:
    records = [record("success", episode=i) for i in range(3)]
    records += [record("failure", episode=3), record("policy_error", episode=4, error_kind="policy")]
    row = rates(records)
    assert (row["episodes"], row["n"], row["failures"], row["policy_errors"], row["errors"]) == (5, 5, 2, 1, 0)
    assert row["success_rate"] == 0.6 and row["worst_case_rate"] is None
    assert "3 of 5 episodes = 60.0%" in headline(summary(records))
    assert headline(summary(records)).endswith("1 policy errors, 0 errors")

    records.append(record("error", episode=5, error_kind="lost"))
    row = rates(records)
    assert (row["episodes"], row["n"], row["successes"], row["failures"], row["errors"]) == (6, 5, 3, 2, 1)
    assert (row["success_rate"], row["worst_case_rate"]) == (0.6, 0.5)
    assert (row["wilson_low"], row["wilson_high"]) == wilson(3, 5)
    assert row["mean_steps_to_success"] == 101
    assert headline(summary(records)).endswith("1 policy errors, 1 errors (counted as failures: 50.0%)")
    assert paired(records, records)["pairs"] == 5


def test_no_rate_without_an_episode_that_ended() -> None:
    row = rates([record("error")])
    assert row["n"] == 0 and row["errors"] == 1
    assert row["success_rate"] is row["wilson_low"] is row["wilson_high"] is row["mean_steps_to_success"] is None


def test_summary_is_by_suite_and_task_in_any_order_of_records() -> None:
    records = [record("success", 2), record("failure", 0), record("success", 10), record("success", 0, 1)]
    records.append(record("failure", 0, suite="libero_goal"))
    tree = summary(reversed(records))
    assert tree == summary(records)
    assert tree["suite"] == "libero_goal+libero_spatial"
    assert [(row["suite"], row["n"], row["successes"]) for row in tree["per_suite"]] == [
        ("libero_goal", 1, 0),
        ("libero_spatial", 4, 3),
    ]
    assert [(row["suite"], row["task"]) for row in tree["per_task"]] == [
        ("libero_goal", 0),
        ("libero_spatial", 0),
        ("libero_spatial", 2),
        ("libero_spatial", 10),
    ]
    assert tree["success_rate"] == 0.6


def test_timings_add_up() -> None:
    tree = timings([record(policy_ms=(10.0, 20.0)), record(policy_ms=(30.0,), steps=50)])
    assert tree["policy_s"] == 0.06 and tree["episode_s_total"] == 10.0
    assert tree["control_steps_per_s"] == 15.0
    assert tree["policy_ms"]["p50"] == 20.0
    assert timings([])["policy_ms"]["p99"] is None


def test_pairs_are_compared_by_mcnemars_exact_test() -> None:
    plain = [record("success", 0, i) for i in range(9)] + [record("error", 0, 9), record("failure", 0, 10)]
    outcomes = ["failure"] * 6 + ["success"] * 2 + ["error", "success", "success"]
    changed = [record(outcome, 0, i) for i, outcome in enumerate(outcomes)]
    found = paired(plain, changed)
    assert (found["pairs"], found["lost"], found["gained"]) == (9, 6, 1)
    assert found["p_value"] == pytest.approx(2 * (1 + 7) / 2**7)  # of 7 that differ, 6 or more on one side
    assert paired(plain, plain)["p_value"] == 1


def test_tasks_not_learnt_from_are_counted_apart() -> None:
    records = [record("success", 0, 0), record("failure", 1, 0), record("success", 1, 1), record("success", 2, 0)]
    records.append(record("failure", 0, 0, suite="libero_goal"))
    found = held_out(records, {"libero_spatial": [0, 2], "libero_goal": None})
    assert found is not None
    assert (found["tasks"], found["successes"], found["n"]) == ([("libero_spatial", 1)], 1, 2)
    strange = held_out(records, {"libero_spatial": None})
    assert strange is not None and (strange["tasks"], strange["n"]) == ([("libero_goal", 0)], 1)
    assert held_out(records, {"libero_spatial": None, "libero_goal": (0,)}) is None
    lines = headline({**summary(records), "held_out": found}).splitlines()
    assert lines[2].startswith("  of them, on tasks that it did not learn from: 1 of 2 = 50.0%")


@pytest.mark.parametrize(
    ("blind", "words"),
    [(0, "0 of 20 episodes: it depends on them"), (5, "these can be had without"), (17, "replays a memory")],
)
def test_the_evaluation_says_whether_the_policy_looks(blind: int, words: str) -> None:
    plain = [record("success" if i < 19 else "failure", 0, i) for i in range(20)]
    dark = [record("success" if i < blind else "failure", 0, i) for i in range(20)]
    row = {"condition": "blank_cameras", "amount": None, **rates(dark), **paired(plain, dark)}
    report = {**summary(plain), "conditions": [row]}
    assert words in str(whether_it_looks(report)) and words in headline(report)
    assert f"blank_cameras: {blind} of 20 = {blind / 20:.1%}" in headline(report)
    assert whether_it_looks(summary(plain)) is None


def test_too_few_episodes_show_nothing() -> None:
    for n, words in ((5, "too few to tell"), (6, "it depends on them")):
        plain, dark = ([record(outcome, 0, i) for i in range(n)] for outcome in ("success", "failure"))
        row = {"condition": "blank_cameras", "amount": None, **rates(dark), **paired(plain, dark)}
        assert words in str(whether_it_looks({**summary(plain), "conditions": [row]}))
    none = {"condition": "blank_cameras", "amount": None, **rates(dark), **paired(dark, dark)}
    assert "with them in 0: too few to tell" in str(whether_it_looks({**summary(dark), "conditions": [none]}))


def test_blanked_cameras_on_displaced_scenes_are_told_of() -> None:
    plain = [record("success", 0, i) for i in range(20)]
    moved = [record("success" if i < 10 else "failure", 0, i) for i in range(20)]
    dark = [record("failure", 0, i) for i in range(20)]
    row = {"condition": "displaced+blank_cameras", "amount": 0.08, **rates(dark), "against": "displaced"}
    words = str(whether_it_looks({**summary(plain), "conditions": [row | paired(moved, dark)]}))
    assert words == (
        "With its cameras blanked it succeeds in 0 of 20 episodes (displaced, blank_cameras): it depends on them."
    )
