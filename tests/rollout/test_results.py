"""episodes.jsonl: nothing that was finished is lost, nothing torn is taken for finished."""

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.rollout.results import Journal, from_line, read_records, write_records
from tests.rollout.make import record


def test_a_line_holds_all_of_a_record() -> None:
    for outcome in ("success", "failure", "error"):
        one = record(outcome, 3, 7, video="videos/a.mp4")
        assert from_line(one.to_line()) == one


def test_result_has_no_clock() -> None:
    slow = record(seconds=99.0, reset_s=9.0, physics_s=9.0, render_s=9.0, policy_ms=(1e3,), renders=220, video="a.mp4")
    assert slow != record() and slow.result() == record().result()
    assert record(steps=99).result() != record().result()


def test_records_come_back_sorted(tmp_path: Path) -> None:
    records = [record(task=10), record(task=2, episode=11), record(task=2, episode=3), record(suite="libero_goal")]
    write_records(tmp_path / "episodes.jsonl", records)
    keys = [r.key for r in read_records(tmp_path / "episodes.jsonl")]
    assert keys == [
        ("libero_goal", 0, 0),
        ("libero_spatial", 2, 3),
        ("libero_spatial", 2, 11),
        ("libero_spatial", 10, 0),
    ]


def test_journal_goes_on_after_a_kill_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with Journal(path) as journal:
        for i in range(3):
            journal.append(record(episode=i))
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole) + 1, 37):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert len(journal.records) == sum(end <= cut for end in ends)
            journal.append(record(episode=9))
        assert [r.episode for r in read_records(path)] == [*range(sum(end <= cut for end in ends)), 9]


def test_journal_keeps_the_first_of_two(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(record(steps=1).to_line() + "\n" + record(steps=2).to_line() + "\n")
    with Journal(path) as journal:
        assert [r.steps for r in journal.records.values()] == [1]


@pytest.mark.parametrize("line", ["{", "[]", '{"suite": "libero_spatial"}'])
def test_damage_in_the_middle_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(f"{record().to_line()}\n{line}\n{record().to_line()}\n")
    with pytest.raises(DataError, match=r"episodes\.jsonl: line 2 is damaged"), Journal(path):
        pass
    with pytest.raises(DataError, match="line 2"):
        read_records(path)


def test_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found.*dvc repro eval_libero"):
        read_records(tmp_path / "episodes.jsonl")
