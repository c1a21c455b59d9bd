"""One rollout, by the protocol of OpenVLA and openpi. The outcome is a function of the arguments and nothing else."""

import hashlib
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from pipeline.errors import PipelineError, SimulatorError
from pipeline.libero.conventions import ACTION_DIM
from pipeline.libero.sim.simulator import Observation, Simulator
from pipeline.libero.suites import SUITES, Task, check_row, init_states
from pipeline.rollout.agent import Agent, Privileged, RecordingAgent, Unavailable
from pipeline.rollout.conditions import OTHER_EPISODE, FixedImageAgent, alter_world, without
from pipeline.rollout.results import EpisodeRecord, ErrorKind, Outcome
from pipeline.rollout.settings import PLAIN, condition_parts

log = logging.getLogger(__name__)
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)  # the machine's fault, whoever asked for it


@dataclass(frozen=True)
class EpisodeSettings:
    """What decides an episode besides simulator, agent, task and episode id.

    Attributes:
        first_init_state: row of the task's init states that episode 0 starts from; episode i has row first + i.
        max_steps: control steps after settling; None is the suite's usual limit.
        timeout_s: limit of one episode, in seconds of `own_time`.
        seed: of the agent; each episode derives its own from it.
        sim_seed: of the simulator, set before every reset: fixtures stand where the benchmark has them.
        condition: what is changed, and by how much: see pipeline.rollout.conditions.
    """

    first_init_state: int
    max_steps: int | None
    timeout_s: float
    seed: int
    sim_seed: int
    condition: str = PLAIN
    amount: float | None = None


@runtime_checkable
class Recorder(Protocol):
    """Is given each camera's picture before each control step, and after the last."""

    def add(self, images: Mapping[str, np.ndarray]) -> None:
        """Keep one frame."""


class PolicyError(Exception):
    """The agent raised, or gave something that is no action."""


class EpisodeTimeout(Exception):
    """The episode took longer than it may."""


class PolicyTimeout(EpisodeTimeout):
    """So it did, and most of the time was the agent's."""


def run_episode(
    simulator: Simulator,
    agent: Agent,
    task: Task,
    episode: int,
    settings: EpisodeSettings,
    recorder: Recorder | None = None,
) -> EpisodeRecord:
    """Run one episode; return its result, also that of an error.

    The cameras are drawn for a policy call, which is every agent.n_action_steps steps. With a recorder they are drawn
    at each step, without any effect on the result.

    Raises:
        PipelineError: settings that no episode can run with (a row that the task lacks...). All else that goes wrong is
            an outcome.
    """
    roll = _Rollout(simulator, agent, task, episode, settings, recorder)
    kind: ErrorKind | None = None
    error: Exception | None = None
    started = perf_counter()
    try:
        roll.run()
    except PolicyError as e:
        kind, error = "policy", e
    except EpisodeTimeout as e:
        kind, error = "timeout", e
    except OUT_OF_MEMORY as e:
        kind, error = "memory", e
    except Unavailable as e:
        kind, error = "server", e
    except SimulatorError as e:
        kind, error = "simulator", e
    except PipelineError:
        raise
    except Exception as e:  # whatever MuJoCo, robosuite or LIBERO raise in mid-episode
        kind, error = "simulator", e
    if error is not None:
        log.warning("%s, task %d, episode %d: %s", task.suite, task.id, episode, describe(error))
    return EpisodeRecord(
        suite=task.suite,
        task=task.id,
        name=task.name,
        language=task.language,
        episode=episode,
        init_row=settings.first_init_state + episode,
        outcome=_outcome(error, roll.success),
        error_kind=kind,
        error=describe(error) if error else None,
        attempts=1,
        steps=roll.steps,
        policy_calls=len(roll.policy_s),
        renders=roll.renders,
        final_state=None if error else _digest(simulator.state()),
        seconds=round(perf_counter() - started, 4),
        reset_s=round(roll.clock["reset"], 4),
        physics_s=round(roll.clock["physics"], 4),
        render_s=round(roll.clock["render"], 4),
        policy_ms=tuple(round(1e3 * s, 3) for s in roll.policy_s),
    )


def _outcome(error: Exception | None, success: bool) -> Outcome:
    if error is not None:
        return "policy_error" if isinstance(error, PolicyError | PolicyTimeout) else "error"
    return "success" if success else "failure"


def own_time() -> float:
    """Return a clock in seconds that stands still while this thread waits for a core: others' load is not its fault."""
    try:
        waited_ns = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # Linux tells, others don't
        waited_ns = 0
    return perf_counter() - waited_ns / 1e9


def episode_seed(seed: int, task: Task, episode: int) -> int:
    """Return the seed of one episode's agent, in [0, 2^63): the same in any order and on any number of workers."""
    digest = hashlib.sha256(f"{seed}/{task.suite}/{task.id}/{episode}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def world_seed(settings: EpisodeSettings, task: Task, row: int) -> int:
    """Return the seed of what a condition draws: by init state, so that it is the same for every policy and seed."""
    return episode_seed(settings.sim_seed, task, row)


def step_limit(task: Task, settings: EpisodeSettings) -> int:
    """Return the control steps that an episode of `task` may take."""
    return SUITES[task.suite].max_steps if settings.max_steps is None else settings.max_steps


def describe(error: BaseException) -> str:
    """Return type, message and place of an error, in one line of text."""
    cause = error.__cause__ if isinstance(error, PolicyError) and error.__cause__ else error
    frames = traceback.extract_tb(cause.__traceback__)
    place = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    told = PolicyError | EpisodeTimeout | PipelineError | Unavailable
    text = str(error) if isinstance(error, told) else repr(error)
    return " ".join(text.split())[:2000] + place


def _digest(state: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(state, np.float64).tobytes()).hexdigest()[:16]


@dataclass
class _Rollout:
    """The episode under way."""

    simulator: Simulator
    agent: Agent
    task: Task
    episode: int
    settings: EpisodeSettings
    recorder: Recorder | None
    success: bool = False
    steps: int = 0
    renders: int = 0
    policy_s: list[float] = field(default_factory=list)
    clock: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("reset", "physics", "render"), 0.0))
    started: float = 0.0
    policy_own_s: float = 0.0

    def run(self) -> None:
        """Act until the task is solved or the steps are spent."""
        if OTHER_EPISODE in condition_parts(self.settings.condition):
            self.agent = FixedImageAgent(self.agent, self._neighbours())
        self.started = own_time()
        with self._timed("reset"):
            states = init_states(self.task)
            row = self.settings.first_init_state + self.episode
            check_row(self.task, row, len(states))
            self.simulator.reset(states[row], self.settings.sim_seed)
            settings, drawn = self.settings, world_seed(self.settings, self.task, row)
            alter_world(self.simulator, settings.condition, settings.amount, drawn, settings.sim_seed)
        with self._of_the_policy("reset"):
            self.agent.reset(self.task, episode_seed(self.settings.seed, self.task, self.episode))
            if isinstance(self.agent, Privileged):
                self.agent.begin(self.simulator, self.episode)
        limit = step_limit(self.task, self.settings)
        while self.steps < limit and not self.success:
            obs = self._look()
            for i, action in enumerate(self._act(obs)[: limit - self.steps]):
                if self.recorder:
                    self._record(obs if i == 0 and obs.images else self._draw())
                with self._timed("physics"):
                    self.success = self.simulator.step(action)
                self.steps += 1
                self._check_time()
                if self.success:
                    break
        if self.recorder:
            self._record(self._draw())

    def _neighbours(self) -> list[Observation]:
        """Run the episode of the next init state, else under the same condition; return what the agent was shown."""
        row = self.settings.first_init_state + self.episode
        neighbour = self.episode + (1 if row + 1 < len(init_states(self.task)) else -1)
        recording = RecordingAgent(self.agent)
        settings = replace(self.settings, condition=without(self.settings.condition, OTHER_EPISODE))
        _Rollout(self.simulator, recording, self.task, neighbour, settings, None).run()
        return recording.seen

    def _look(self) -> Observation:
        return self._draw() if self.agent.cameras else self.simulator.proprio()

    def _draw(self) -> Observation:
        with self._timed("render"):
            self.renders += 1
            return self.simulator.observe()

    def _act(self, obs: Observation) -> np.ndarray:
        """Ask the agent; return the (n_action_steps, 7) actions to carry out, float64."""
        started = perf_counter()
        with self._of_the_policy("act"):
            actions = self.agent.act(obs)
        self.policy_s.append(perf_counter() - started)
        self._check_time()
        return _checked(actions, self.agent.n_action_steps)

    def _record(self, obs: Observation) -> None:
        assert self.recorder is not None
        try:
            self.recorder.add(obs.images)
        except Exception as error:
            raise PipelineError(f"cannot encode the video: {error!r}. Set eval_libero.videos_per_task: 0") from error

    def _check_time(self) -> None:
        if (took := own_time() - self.started) > self.settings.timeout_s:
            raise (PolicyTimeout if self.policy_own_s > took / 2 else EpisodeTimeout)(
                f"{took:.1f} s for {self.steps} steps, {self.policy_own_s:.1f} s of them the policy's: more than "
                f"eval_libero.timeout_s {self.settings.timeout_s:g}"
            )

    @contextmanager
    def _of_the_policy(self, method: str) -> Iterator[None]:
        """Blame the agent for what is raised, and count the time as its own."""
        started = own_time()
        try:
            yield
        except (PipelineError, Unavailable, *OUT_OF_MEMORY):
            raise  # a setting that a person can mend, or the machine: not the policy's fault
        except Exception as error:
            raise PolicyError(f"the agent's {method}() raised {error!r}") from error
        finally:
            self.policy_own_s += own_time() - started

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.clock[part] += perf_counter() - started


def _checked(actions: np.ndarray, n_action_steps: int) -> np.ndarray:
    """Return the first `n_action_steps` actions; refuse what is none."""
    try:
        array = np.asarray(actions, np.float64)
    except (TypeError, ValueError) as error:
        raise PolicyError(f"the agent gave {type(actions).__name__}, not numbers: {error}") from None
    if array.ndim != 2 or array.shape[1] != ACTION_DIM or len(array) < n_action_steps:
        raise PolicyError(
            f"the agent gave actions of shape {array.shape}, not (h, {ACTION_DIM}) with h >= {n_action_steps}"
        )
    if not np.isfinite(array).all():
        rows, columns = np.nonzero(~np.isfinite(array))
        raise PolicyError(f"the agent gave {array[rows[0], columns[0]]} in action {rows[0]}, component {columns[0]}")
    return array[:n_action_steps]
