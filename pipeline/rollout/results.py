"""What is kept of an episode, and the append-only file (episodes.jsonl) that it is kept in."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pipeline.errors import DataError

Outcome = Literal["success", "failure", "policy_error", "error"]
ErrorKind = Literal["policy", "timeout", "simulator", "memory", "server", "lost"]
Key = tuple[str, int, int]


@dataclass(frozen=True)
class EpisodeRecord:
    """One line of episodes.jsonl.

    Attributes:
        task: LIBERO's task id in the suite.
        init_row: row of the task's init states that the episode started from (a replay then goes to its
            demonstration's own state).
        outcome: `policy_error` is an exception, an unusable action or a timeout of the policy, and counts as a failure;
            `error` is the fault of the simulator, a server or the machine, says nothing about the policy, and is in no
            rate.
        error_kind: policy (it raised, or gave no usable action), timeout (of the episode), simulator, memory (there was
            not enough), server (that of a remote policy was busy, out of memory or restarted), or lost (the worker
            process died, again and again); None without an error.
        attempts: runs it took; an episode that ended in an `error` is run once more.
        steps: control steps after settling; of a success, the steps to it.
        policy_calls: times that the agent was asked to act.
        renders: times that the cameras were drawn: policy_calls, unless a video was recorded or the agent is blind.
        final_state: first 16 hex digits of the SHA-256 of the simulator's last state: equal rollouts have equal ones.
        seconds: wall time of the episode, of which reset_s, physics_s, render_s and the sum of policy_ms are parts.
        policy_ms: wall time of each policy call, encoder included.
        video: its recording, relative to the file the record stands in; None if there is none.
    """

    suite: str
    task: int
    name: str
    language: str
    episode: int
    init_row: int
    outcome: Outcome
    error_kind: ErrorKind | None
    error: str | None
    attempts: int
    steps: int
    policy_calls: int
    renders: int
    final_state: str | None
    seconds: float
    reset_s: float
    physics_s: float
    render_s: float
    policy_ms: tuple[float, ...]
    video: str | None = None

    @property
    def key(self) -> Key:
        """(suite, task, episode): what an evaluation has once each, and is sorted by."""
        return self.suite, self.task, self.episode

    def result(self) -> dict[str, Any]:
        """Return what does not depend on the machine's speed and faults, or on whether a video was made."""
        clock = {"seconds", "reset_s", "physics_s", "render_s", "policy_ms", "renders", "video", "attempts"}
        return {name: value for name, value in asdict(self).items() if name not in clock}

    def to_line(self) -> str:
        """Return one line of JSON, without the newline."""
        return json.dumps(asdict(self))


def from_line(line: str) -> EpisodeRecord:
    """Return the record of one line. Raises ValueError if it is none."""
    tree = json.loads(line)
    if not isinstance(tree, dict) or set(tree) != {f.name for f in fields(EpisodeRecord)}:
        raise ValueError("not an episode record of this version")
    return EpisodeRecord(**{**tree, "policy_ms": tuple(tree["policy_ms"])})


def read_records(path: Path) -> list[EpisodeRecord]:
    """Read a finished episodes.jsonl.

    Raises:
        DataError: the file is missing or a line is damaged.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{path}: not found. Evaluate the policy: dvc repro eval_libero, or python -m stages.eval_libero --out DIR"
        ) from None
    return list(_parse(lines, path))


def write_records(path: Path, records: Iterable[EpisodeRecord]) -> None:
    """Write records sorted by suite, task and episode."""
    ordered = sorted(records, key=lambda r: r.key)
    path.write_text("".join(record.to_line() + "\n" for record in ordered))


def _parse(lines: Iterable[str], path: Path) -> Iterator[EpisodeRecord]:
    for number, line in enumerate(lines, start=1):
        try:
            yield from_line(line)
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: line {number} is damaged ({error}). Delete it and evaluate again.") from None


class Journal:
    """An episodes.jsonl under way: a record is on disk when `append` returns, whatever happens to the process next.

    Opening it drops a last line that a kill tore off; `records` holds what was finished before, one per episode.

    Raises:
        DataError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.records: dict[Key, EpisodeRecord] = {}
        self._file = path.open("a+b")
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        for record in _parse(whole.decode().splitlines(), path):
            self.records.setdefault(record.key, record)

    def append(self, record: EpisodeRecord) -> None:
        """Write one record through to the disk."""
        self._file.write(record.to_line().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[record.key] = record

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
