"""A policy on its clock (LIBERO: 20 Hz): the next chunk is computed while the last one plays. The robot: the simulator.

    python -m examples.control_loop                               # runs/flow/policy, task 0 of params.yaml
    python -m examples.control_loop --latency 0.1 --wait          # slower by 100 ms, and the robot waits for each chunk

For a robot of your own write a class with `observe` and `send`, and give it to `drive`. See docs/deploy.md.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

WATCHDOG_S = 1.0


class Robot(Protocol):
    """What is driven."""

    def observe(self) -> dict[str, Any]:
        """Return the newest observation, as the policy's `describe` wants it."""

    def send(self, action: np.ndarray) -> bool:
        """Carry out one action for one tick; return whether the task is done."""

    def stop(self) -> None:
        """Stand still, safely, until somebody comes."""


@dataclass
class Report:
    """Ticks in all, those for which no action was there, those that came late, and whether the task was done."""

    ticks: int = 0
    starved: int = 0
    late: int = 0
    done: bool = False


class WatchdogError(RuntimeError):
    """A chunk took too long."""


@dataclass(frozen=True)
class Limits:
    """Of each component of an action: the least and the most, (A,)."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Limits":
        """Return those of a policy, from its `describe()`: of another robot the range that its data have."""
        from pipeline.inference.describe import action_ranges

        ranges = np.array(action_ranges(described["outputs"]["actions"]))
        return cls(ranges[:, 0], ranges[:, 1])


def hold(last: np.ndarray | None) -> np.ndarray:
    """Return the action (7,) by which LIBERO's robot stays where it is, its gripper too."""
    return np.append(np.zeros(6), -1.0 if last is None else last[6])


def drive(
    robot: Robot,
    act: Callable[[dict[str, Any]], np.ndarray],
    n_action_steps: int,
    ticks: int,
    *,
    hz: float,
    limits: Limits,
    still: Callable[[np.ndarray | None], np.ndarray],
    wait: bool = False,
    pool: Executor | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Drive the robot for so many ticks, or until it is done. Then, and whatever goes wrong, it is stopped.

    Every n_action_steps actions a new chunk is asked for. Of a chunk that comes late, the actions whose time has passed
    are left out; or, with `wait`, none, and the robot stands still meanwhile. Ticks that come late are not caught up.

    Args:
        act: from an observation to a chunk (H, A), such as `policy.act` with an instruction.
        hz: ticks a second: `describe()["control_hz"]` of the policy, or that of your data, if they told none.
        limits: what actions are clamped to, such as `Limits.of(policy.describe())`.
        still: what to send while there is no action, given the last one (None: none yet). Where actions are targets,
            and not displacements, that is the last one, and at first where the robot stands; for LIBERO's `hold`.

    Raises:
        WatchdogError: a chunk took longer than WATCHDOG_S.
        ValueError: hz is no rate, or an action holds what is no number, or has another width.
    """
    if not hz or hz <= 0:
        raise ValueError(f"hz is {hz}: give the rate of your data, in 1/s")
    own = None if pool else ThreadPoolExecutor(1)
    try:
        try:
            parts = (limits, still, wait, pool or own, clock, sleep)
            report, request = _drive(robot, act, n_action_steps, ticks, hz, *parts)  # type: ignore[arg-type]
        finally:
            robot.stop()
        if request and not _ends(request):  # the next episode is not to begin while a chunk is computed
            raise WatchdogError(f"a chunk took more than {WATCHDOG_S:g} s: the robot was stopped")
    finally:
        if own:
            own.shutdown(wait=False, cancel_futures=True)
    return report


def _ends(request: Future) -> bool:
    """Wait for a chunk that nobody needs any more, its failure too; return whether it came to an end in time."""
    return request.cancel() or bool(wait_for([request], WATCHDOG_S).done)


def _drive(
    robot: Robot,
    act: Callable[[dict[str, Any]], np.ndarray],
    n_action_steps: int,
    ticks: int,
    hz: float,
    limits: Limits,
    still: Callable[[np.ndarray | None], np.ndarray],
    wait: bool,
    pool: Executor,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> tuple[Report, Future | None]:
    report, chunk, played = Report(), np.zeros((0, len(limits.low))), 0
    last: np.ndarray | None = None
    request: Future | None = None
    asked_at, asked, start = 0, 0.0, clock()
    for tick in range(ticks):
        if request is None and (played >= n_action_steps or not len(chunk)):
            request, asked_at, asked = pool.submit(act, robot.observe()), tick, clock()
        if request is not None and request.done():
            passed = 0 if wait or not len(chunk) else tick - asked_at
            chunk, played, request = _within(request.result(), limits), passed, None
        elif request is not None and clock() - asked > WATCHDOG_S:
            raise WatchdogError(f"no actions for {WATCHDOG_S:g} s: the robot was stopped")
        if played < len(chunk) and not (wait and request is not None):
            action = last = chunk[played]
            played += 1
        else:
            action = _within(still(last)[None], limits)[0]
            report.starved += 1
        report.ticks += 1
        if robot.send(action):
            report.done = True
            break
        left = start + (tick + 1) / hz - clock()
        if left < 0:
            report.late += 1
            start -= left  # a robot that lagged is not to be rushed
        else:
            sleep(left)
    return report, request


def _within(chunk: np.ndarray, limits: Limits) -> np.ndarray:
    """Return actions (h, A) clamped to the limits. Raises ValueError."""
    if chunk.ndim != 2 or chunk.shape[1] != len(limits.low) or not np.isfinite(chunk).all():
        raise ValueError(f"a chunk of shape {chunk.shape} that is not all numbers, or not {len(limits.low)} wide")
    return np.clip(chunk, limits.low, limits.high)


class Simulated:
    """The simulator as a robot."""

    def __init__(self, simulator: Any, inputs: tuple[str, ...]) -> None:
        self._simulator, self._inputs = simulator, inputs

    def observe(self) -> dict[str, Any]:
        seen = self._simulator.observe()
        pictures = {**seen.images, **seen.depths}  # depth in millimetres, as a policy takes it
        return {name: pictures[name] if name in pictures else getattr(seen, name) for name in self._inputs}

    def send(self, action: np.ndarray) -> bool:
        return bool(self._simulator.step(action))

    def stop(self) -> None:
        """A simulator stands still by itself."""


def main(argv: list[str] | None = None) -> None:
    """Drive the simulator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="runs/flow/policy")
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--ticks", type=int, help="of an episode at most (default: the suite's limit)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds more for each chunk (default: %(default)s)")
    parser.add_argument("--wait", action="store_true", help="stand still while a chunk is computed")
    args = parser.parse_args(argv)
    from pipeline.config import load
    from pipeline.inference.policy import Policy
    from pipeline.libero.sim.simulator import Simulator
    from pipeline.libero.suites import SUITES, init_states, tasks
    from pipeline.rollout.agent import check_pictures

    params, policy = load(args.params), Policy.load(args.policy)
    check_pictures(policy.spec, params.sim)
    suite = params.data.suites[0]
    task = tasks(suite, params.data.tasks.get(suite))[0]
    arch, described = policy.spec.architecture, policy.describe()
    hz, limits = described["control_hz"], Limits.of(described)

    def act(observation: dict[str, Any]) -> np.ndarray:
        time.sleep(args.latency)
        return policy.act(observation, task.language)

    with Simulator(task, params.sim, arch.cameras) as simulator:
        for episode in range(args.episodes):
            simulator.reset(init_states(task)[episode], params.sim.seed)
            policy.reset(episode)
            robot = Simulated(simulator, (*arch.cameras, *arch.proprio))
            limit = args.ticks or SUITES[suite].max_steps
            report = drive(robot, act, policy.n_action_steps, limit, hz=hz, limits=limits, still=hold, wait=args.wait)
            print(f"episode {episode}: {'solved' if report.done else 'not solved'}, {report}")


if __name__ == "__main__":
    main()
