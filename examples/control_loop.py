"""A policy on a clock of 20 Hz: the next chunk is computed while the last one plays. The robot here is the simulator.

    python -m examples.control_loop                               # runs/flow/policy, task 0 of params.yaml
    python -m examples.control_loop --latency 0.1 --wait          # slower by 100 ms, and the robot waits for each chunk

For a robot of your own write a class with `observe` and `send`, and give it to `drive`. See docs/deploy.md.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

HZ = 20.0
WATCHDOG_S = 1.0
LIMIT = 1.0  # of each component of an action


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
    """What came of it: ticks in all, those for which no action was there, those that came late, and the end."""

    ticks: int = 0
    starved: int = 0
    late: int = 0
    done: bool = False


class WatchdogError(RuntimeError):
    """No chunk came for too long. The robot was stopped."""


def drive(
    robot: Robot,
    act: Callable[[dict[str, Any]], np.ndarray],
    n_action_steps: int,
    ticks: int,
    *,
    wait: bool = False,
    still: np.ndarray | None = None,
    pool: Executor | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Drive the robot for so many ticks, or until it is done.

    Every n_action_steps actions a new chunk is asked for. Of a chunk that comes late, the actions whose time has passed
    are left out; or, with `wait`, none, and the robot stands still meanwhile.

    Args:
        act: from an observation to a chunk (H, A), such as `policy.act` with an instruction.
        still: the action that changes nothing, but for the gripper, its last component.

    Raises:
        WatchdogError: no chunk came for WATCHDOG_S.
    """
    still = np.zeros(7) if still is None else still
    report, own = Report(), pool is None
    pool = pool or ThreadPoolExecutor(1)
    chunk, played, asked_at = np.zeros((0, len(still))), 0, 0
    request: Future | None = None
    heard = start = clock()
    try:
        for tick in range(ticks):
            if request is None and (played >= n_action_steps or not len(chunk)):
                request, asked_at = pool.submit(act, robot.observe()), tick
            if request is not None and request.done():
                fresh, request, heard = np.clip(request.result(), -LIMIT, LIMIT), None, clock()
                passed = 0 if wait or not len(chunk) else tick - asked_at
                chunk, played = fresh, passed
            elif clock() - heard > WATCHDOG_S:
                robot.stop()
                raise WatchdogError(f"no actions for {WATCHDOG_S:g} s: the robot was stopped")
            waits = wait and request is not None
            if played < len(chunk) and not waits:
                action, played = chunk[played], played + 1
                still = np.append(still[:-1], action[-1])
            else:
                action = still
                report.starved += 1
            report.ticks += 1
            if robot.send(action):
                report.done = True
                break
            left = start + (tick + 1) / HZ - clock()
            report.late += left < 0
            sleep(max(0.0, left))
    finally:
        if own:
            pool.shutdown(cancel_futures=True)
    return report


class Simulated:
    """The simulator as a robot."""

    def __init__(self, simulator: Any, inputs: tuple[str, ...]) -> None:
        self._simulator, self._inputs = simulator, inputs

    def observe(self) -> dict[str, Any]:
        seen = self._simulator.observe()
        return {name: seen.images[name] if name in seen.images else getattr(seen, name) for name in self._inputs}

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
    from pipeline.libero.sim.simulator import NO_OP, Simulator
    from pipeline.libero.suites import SUITES, init_states, tasks

    params, policy = load(args.params), Policy.load(args.policy)
    suite = params.data.suites[0]
    task = tasks(suite, params.data.tasks.get(suite))[0]
    arch = policy.spec.architecture

    def act(observation: dict[str, Any]) -> np.ndarray:
        time.sleep(args.latency)
        return policy.act(observation, task.language)

    with Simulator(task, params.sim, arch.cameras) as simulator:
        for episode in range(args.episodes):
            simulator.reset(init_states(task)[episode], params.sim.seed)
            policy.reset(episode)
            robot = Simulated(simulator, (*arch.cameras, *arch.proprio))
            limit = args.ticks or SUITES[suite].max_steps
            report = drive(robot, act, policy.n_action_steps, limit, wait=args.wait, still=NO_OP)
            print(f"episode {episode}: {'solved' if report.done else 'not solved'}, {report}")


if __name__ == "__main__":
    main()
