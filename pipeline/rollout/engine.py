"""Many episodes: on any number of workers, with the same results; killed at any time, going on where it was."""

import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.compute import Compute, map_unordered, worker_index
from pipeline.errors import DataError, SimulatorError
from pipeline.files import exclusive, write_atomic
from pipeline.libero.installation import find_assets, picture_identity
from pipeline.libero.settings import Sim
from pipeline.libero.sim import gl
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import Task, check_row, init_states
from pipeline.provenance import code_digest, versions
from pipeline.rollout.agent import Agent, own_device
from pipeline.rollout.conditions import alter_agent
from pipeline.rollout.episode import EpisodeSettings, describe, run_episode, step_limit
from pipeline.rollout.results import EpisodeRecord, ErrorKind, Journal, Key
from pipeline.rollout.video import VideoRecorder

log = logging.getLogger(__name__)

ATTEMPTS = 2  # runs of an episode that ends in an error
HANG_GRACE_S = 120.0
"""Seconds past an episode's own limit after which its process is taken to hang, and ended."""
# Code whose change may change a result, and so must not go on with half of an older one's.
CODE = ("libero", "encode", "policy", "inference", "rollout")


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated. Everything that decides a result is in here; how fast it comes is not.

    Attributes:
        make_agent: called once per worker; travels by pickle.
        identity: of the agent, as plain JSON values.
        episodes: per task.
        videos_per_task: recordings of each task's first episodes, and as many that failed at the task.
        threads: of torch, in each worker. Sums depend on it, in the last bit.
        device: that the agent computes on: cpu, cuda (the GPUs in turn), cuda:1...
        resumable: whether `identity` says which policy it is, so that episodes of an earlier run are its own.
    """

    make_agent: Callable[[], Agent]
    identity: dict[str, Any]
    sim: Sim
    tasks: tuple[Task, ...]
    episodes: int
    settings: EpisodeSettings
    videos_per_task: int = 0
    threads: int = 1
    device: str = "cpu"
    resumable: bool = True

    def describe(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        return {
            "agent": self.identity,
            "sim": {name: value for name, value in asdict(self.sim).items() if name != "assets_path"}
            | picture_identity(self.sim),
            "tasks": [{"suite": t.suite, "task": t.id, "max_steps": step_limit(t, self.settings)} for t in self.tasks],
            "episodes": self.episodes,
            "videos_per_task": self.videos_per_task,
            "threads": self.threads,
            **asdict(self.settings),
        }

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with anything a result depends on: settings, policy, code, libraries."""
        what = {"evaluation": self.describe(), "versions": versions(), "code": code_digest(*CODE)}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Item:
    """One unit of work."""

    task: Task
    episode: int
    film: bool

    @property
    def key(self) -> Key:
        """That of its record."""
        return self.task.suite, self.task.id, self.episode


@dataclass(frozen=True)
class Finished:
    """What a worker sends back."""

    record: EpisodeRecord
    simulator: dict[str, Any] | None  # Simulator.info; None if none could be made
    video: bytes | None


def evaluate(evaluation: Evaluation, compute: Compute, work: Path) -> list[EpisodeRecord]:
    """Run the episodes that `work` does not hold yet; return all, sorted by suite, task and episode.

    `work` is left with episodes.jsonl (a line per episode, as they ended), simulators.json (what drew them) and
    videos/. Call again with the same directory to go on after a kill.

    Raises:
        DataError: `work` holds episodes, and the evaluation is not resumable.
        PipelineError: settings, assets, policy or graphics that no episode can run with.
    """
    for task in evaluation.tasks:
        rows = len(init_states(task))
        first = evaluation.settings.first_init_state
        check_row(task, first, rows)
        check_row(task, first + evaluation.episodes - 1, rows)
    find_assets(evaluation.sim)  # before any worker is started
    work.mkdir(parents=True, exist_ok=True)
    with exclusive(work / "lock", "evaluation"), Journal(work / "episodes.jsonl") as journal:
        if journal.records and not evaluation.resumable:
            raise DataError(
                f"{work}: holds {len(journal.records)} episodes of an earlier run, which may be another policy's: the "
                "server's metadata is empty. Delete that directory to begin again; with --agent-id TEXT, which names "
                "the policy, an evaluation can be resumed"
            )
        todo = [item for item in _items(evaluation) if item.key not in journal.records]
        if journal.records and todo:
            log.info("%d of the episodes are done already; %d to go", len(journal.records), len(todo))
        for finished in _run(evaluation, compute, todo, work, "episodes"):
            journal.append(finished.record)
        _film_failures(evaluation, compute, list(journal.records.values()), work)
        records = sorted(journal.records.values(), key=lambda r: r.key)
    return [replace(r, video=_video_name(r) if (work / _video_name(r)).exists() else None) for r in records]


def simulators(work: Path) -> list[dict[str, Any]]:
    """Return Simulator.info of all that drew for the evaluation in `work`: one, unless the workers' machines differ."""
    path = work / "simulators.json"
    return json.loads(path.read_text()) if path.exists() else []


def _items(evaluation: Evaluation) -> list[Item]:
    """All episodes, task by task, so that a worker keeps its simulator as long as may be."""
    return [
        Item(task, episode, film=episode < evaluation.videos_per_task)
        for task in evaluation.tasks
        for episode in range(evaluation.episodes)
    ]


def _run(evaluation: Evaluation, compute: Compute, items: list[Item], work: Path, what: str) -> Iterator[Finished]:
    """Run items; yield what came of each, its video and simulator written down already."""
    results = map_unordered(
        _run_item, items, compute, setup=partial(Worker, evaluation), lost=partial(_lost, evaluation)
    )
    successes = 0
    seldom = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=len(items), desc=what, unit="episode", mininterval=seldom, disable=not items) as bar:
        for done, (_, finished) in enumerate(results, start=1):
            if finished.simulator is not None:
                _note_simulator(work, finished.simulator)
            if finished.video is not None:
                write_atomic(work / _video_name(finished.record), finished.video)
            yield finished
            successes += finished.record.outcome == "success"
            bar.update()
            bar.set_postfix_str(f"{successes}/{done} succeeded")


def _film_failures(evaluation: Evaluation, compute: Compute, records: Sequence[EpisodeRecord], work: Path) -> None:
    """Run some failed episodes again to record them: an episode is a pure function, so it fails in the same way."""
    todo = []
    for task in evaluation.tasks:
        mine = [r for r in sorted(records, key=lambda r: r.key) if (r.suite, r.task) == (task.suite, task.id)]
        failed = [r for r in mine if r.outcome == "failure"][: evaluation.videos_per_task]
        todo += [Item(task, r.episode, film=True) for r in failed if not (work / _video_name(r)).exists()]
    known = {r.key: r for r in records}
    for finished in _run(evaluation, compute, todo, work, "filming failures"):
        if finished.record.result() != known[finished.record.key].result():
            # Seen with a timeout under load. The record stands; the recording shows something else.
            log.warning("%s went otherwise when run again to be filmed", finished.record.key)
            (work / _video_name(finished.record)).unlink(missing_ok=True)


class Worker:
    """A worker process's agent, and the simulator of the task it is at: made once, used for many episodes."""

    def __init__(self, evaluation: Evaluation) -> None:
        import torch

        torch.set_num_threads(evaluation.threads)  # whatever the number of workers
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = own_device(evaluation.device)
        cuda = device if device.startswith("cuda") else None
        gl.activate(evaluation.sim.gl, gpu=worker_index() % gpus if gpus > 1 else None, cuda=cuda)
        self.evaluation = evaluation
        changed = evaluation.settings
        self.agent = alter_agent(evaluation.make_agent(), changed.condition, changed.amount, evaluation.sim)
        self.simulator: Simulator | None = None
        self._ever = False

    def run(self, item: Item) -> Finished:
        """Run one episode; once more if it ends in an error, in a new simulator."""
        with _ends_process(ATTEMPTS * (self.evaluation.settings.timeout_s + HANG_GRACE_S), item):
            for attempt in range(1, ATTEMPTS + 1):
                finished = self._attempt(item)
                finished = replace(finished, record=replace(finished.record, attempts=attempt))
                if finished.record.outcome != "error":
                    break
                self.close()
        return finished

    def _attempt(self, item: Item) -> Finished:
        cameras = self.agent.cameras or ("agentview",)
        try:
            simulator = self._simulator(item.task, cameras)
        except SimulatorError as error:
            if not self._ever:  # nothing ever worked here: a matter for a person, not for a record
                raise
            return Finished(failed_record(self.evaluation, item, "simulator", describe(error)), None, None)
        recorder = VideoRecorder(cameras) if item.film else None
        try:
            record = run_episode(simulator, self.agent, item.task, item.episode, self.evaluation.settings, recorder)
        finally:
            video = recorder.close() if recorder else None
        return Finished(record, simulator.info, video)

    def _simulator(self, task: Task, cameras: tuple[str, ...]) -> Simulator:
        if self.simulator is None or self.simulator.task != task:
            self.close()
            self.simulator = Simulator(task, self.evaluation.sim, cameras)
            self._ever = True
        return self.simulator

    def close(self) -> None:
        """Free the simulator."""
        if self.simulator is not None:
            try:
                self.simulator.close()
            except Exception as error:  # of a broken simulator; the next one starts anew
                log.warning("the simulator did not close: %r", error)
            self.simulator = None


def failed_record(evaluation: Evaluation, item: Item, kind: ErrorKind, error: str) -> EpisodeRecord:
    """Return the record of an episode that could not be begun or finished."""
    return EpisodeRecord(
        suite=item.task.suite,
        task=item.task.id,
        name=item.task.name,
        language=item.task.language,
        episode=item.episode,
        init_row=evaluation.settings.first_init_state + item.episode,
        outcome="error",
        error_kind=kind,
        error=error,
        attempts=1,
        steps=0,
        policy_calls=0,
        renders=0,
        final_state=None,
        seconds=0.0,
        reset_s=0.0,
        physics_s=0.0,
        render_s=0.0,
        policy_ms=(),
    )


def _run_item(worker: Worker, item: Item) -> Finished:
    return worker.run(item)


def _lost(evaluation: Evaluation, item: Item) -> Finished:
    text = "its worker process died, or hung and was ended, each time it was tried"
    return Finished(failed_record(evaluation, item, "lost", text), None, None)


@contextmanager
def _ends_process(seconds: float, item: Item) -> Iterator[None]:
    """End this process if the block takes longer: the last resort against a hang in native code.

    A Dask worker is started again by its nanny and the episode is tried there. A serial run ends, with a message.
    """

    def end() -> None:
        log.critical(
            "%s task %d episode %d has run for %g s: ending process %d. In a serial run, set compute.scheduler: local, "
            "which records such an episode and goes on.",
            *(item.task.suite, item.task.id, item.episode, seconds, os.getpid()),
        )
        os._exit(70)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _note_simulator(work: Path, info: dict[str, Any]) -> None:
    known = simulators(work)
    if info not in known:
        write_atomic(work / "simulators.json", json.dumps([*known, info], indent=2))


def _video_name(record: EpisodeRecord) -> str:
    return f"videos/{record.suite}_task{record.task:02d}_episode{record.episode:03d}.mp4"
