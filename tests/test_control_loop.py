"""The control loop of the example, on a clock that the test turns."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest

from examples.control_loop import Limits, WatchdogError, drive, hold

STEPS = 4  # actions carried out of each chunk
HZ = 20.0
LIMITS = Limits(np.full(7, -1.0), np.full(7, 1.0))


class Clock:
    """Time goes on by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Late(Executor):
    """Results are there some seconds after they were asked for."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:  # type: ignore[override]
        future, ready = Future(), self._clock() + self._seconds - 1e-9
        future.set_result(function(*args, **kwargs))
        future.done = lambda: self._clock() >= ready  # type: ignore[method-assign]
        return future


def on(clock: Clock, seconds: float) -> dict[str, Any]:
    """Return arguments of `drive`: the clock that the test turns, and chunks that take so long by it."""
    return {"pool": Late(clock, seconds), "clock": clock, "sleep": clock.sleep}


class Recorder:
    """A robot that notes when it was asked and what it was told."""

    def __init__(self, done_after: int | None = None) -> None:
        self.sent: list[np.ndarray] = []
        self.seen: list[int] = []
        self.stopped = False
        self._done_after = done_after

    def observe(self) -> dict[str, Any]:
        self.seen.append(len(self.sent))
        return {"tick": len(self.sent)}

    def send(self, action: np.ndarray) -> bool:
        self.sent.append(action)
        return len(self.sent) == self._done_after

    def stop(self) -> None:
        self.stopped = True


def act(observation: dict[str, Any]) -> np.ndarray:
    """Action i says for which tick it is meant, in hundredths."""
    chunk = np.zeros((16, 7))
    chunk[:, 0] = (observation["tick"] + np.arange(16)) / 100
    chunk[:, 6] = 2.0  # too large: it is clamped
    return chunk


def run(
    seconds: float, ticks: int = 20, wait: bool = False, robot: Recorder | None = None, hz: float = HZ
) -> tuple[Recorder, Any]:
    clock, robot = Clock(), robot or Recorder()
    report = drive(
        robot,
        act,
        STEPS,
        ticks,
        hz=hz,
        limits=LIMITS,
        still=hold,
        wait=wait,
        **on(clock, seconds),
    )
    assert clock.now == pytest.approx(report.ticks / hz, abs=1 / hz)
    assert robot.stopped
    return robot, report


def test_another_robot_has_a_clock_of_its_own() -> None:
    """A chunk that takes 0.1 s is one tick late at 10 Hz."""
    assert run(0.1, hz=10.0)[1].starved == 1 and run(0.1)[1].starved == 2


def test_another_robot_has_limits_of_its_own_and_stands_still_in_its_own_way() -> None:
    """Actions are targets here: of a joint in radians, and of a gripper in metres."""
    described = {"outputs": {"actions": {"shape": [16, 2], "range": [[-3.0, 3.0], [0.0, 0.08]]}}}
    clock, robot, stands = Clock(), Recorder(), np.array([0.5, 0.02])
    drive(
        robot,
        lambda seen: np.tile([2.9 + seen["tick"], 1.0], (2, 1)),
        2,
        6,
        hz=HZ,
        limits=Limits.of(described),
        still=lambda last: stands if last is None else last,
        wait=True,
        **on(clock, 0.04),
    )
    found = [action.round(2).tolist() for action in robot.sent]
    assert found == [[0.5, 0.02], [2.9, 0.08], [2.9, 0.08], [2.9, 0.08], [3.0, 0.08], [3.0, 0.08]]


def test_no_chunk_is_computed_any_more_when_it_returns() -> None:
    under_way: list[int] = []
    asked = []

    def slow(observation: dict[str, Any]) -> np.ndarray:
        asked.append(observation["tick"])
        under_way.append(1)
        time.sleep(0.12)
        under_way.pop()
        return act(observation)

    report = drive(Recorder(done_after=2), slow, STEPS, 20, hz=HZ, limits=LIMITS, still=hold)
    assert report.done and asked == [0] and not under_way


def test_a_last_chunk_that_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.control_loop.WATCHDOG_S", 0.2)
    ends, robot = threading.Event(), Recorder(done_after=1)
    with pytest.raises(WatchdogError, match=r"a chunk took more than 0\.2 s: the robot was stopped"):
        drive(
            robot, lambda observation: ends.wait(30) and act(observation), STEPS, 20, hz=HZ, limits=LIMITS, still=hold
        )
    ends.set()
    assert robot.stopped


def test_without_latency_each_action_is_carried_out_at_its_time() -> None:
    robot, report = run(0.0)
    assert [round(100 * action[0]) for action in robot.sent] == list(range(20))
    assert robot.seen == [0, 4, 8, 12, 16] and (report.starved, report.late) == (0, 0)
    assert max(action[6] for action in robot.sent) == 1.0


def test_while_a_chunk_is_computed_the_last_one_goes_on() -> None:
    robot, report = run(0.1)
    told = [round(100 * action[0]) for action in robot.sent]
    assert told[:2] == [0, 0] and report.starved == 2, "the first one is waited for"
    assert told[2:6] == [0, 1, 2, 3], "and begins where the robot stands"
    assert robot.seen[:3] == [0, 6, 10], "asked after four actions, and every four ticks from then on"
    assert told[6:8] == [4, 5], "the first chunk goes on"
    assert told[8:] == list(range(8, 20)), "each later action comes at the tick that it was meant for"
    assert report.starved == 2


def test_or_the_robot_waits_and_holds_what_it_has() -> None:
    robot, report = run(0.1, wait=True)
    still = [action for action in robot.sent if not action[:6].any() and action[6] == 1.0]
    assert report.starved > 4 and len(still) >= report.starved - 3
    assert robot.seen[1] == 6, "two ticks of waiting, four actions"


def test_a_policy_that_is_gone_stops_the_robot() -> None:
    robot = Recorder()
    with pytest.raises(WatchdogError, match="no actions for 1 s: the robot was stopped"):
        run(5.0, ticks=100, robot=robot)
    assert robot.stopped and len(robot.sent) <= 22 and not any(action[:6].any() for action in robot.sent)


def test_it_ends_when_the_task_is_done() -> None:
    assert run(0.0, robot=Recorder(done_after=7))[1].ticks == 7


@pytest.mark.parametrize("bad", [np.full((16, 7), np.nan), np.zeros((16, 6))])
def test_what_is_no_action_stops_the_robot(bad: np.ndarray) -> None:
    clock, robot = Clock(), Recorder()
    with pytest.raises(ValueError, match="a chunk of shape"):
        drive(
            robot,
            lambda _: bad,
            STEPS,
            20,
            hz=HZ,
            limits=LIMITS,
            still=hold,
            **on(clock, 0.0),
        )
    assert robot.stopped and not robot.sent


def test_what_is_sent_meanwhile_is_checked_too() -> None:
    clock, robot = Clock(), Recorder()
    two = Limits(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match=r"a chunk of shape \(1, 7\) .* not 2 wide"):
        drive(robot, act, STEPS, 20, hz=HZ, limits=two, still=hold, **on(clock, 0.2))
    assert robot.stopped and not robot.sent
    with pytest.raises(ValueError, match="hz is None: give the rate of your data"):
        drive(robot, act, STEPS, 20, hz=None, limits=LIMITS, still=hold)  # type: ignore[arg-type]


def test_long_chunks_need_no_answer_meanwhile_and_late_ticks_are_not_caught_up() -> None:
    clock = Clock()

    class Slow(Recorder):
        def send(self, action: np.ndarray) -> bool:
            clock.now += 0.5 if len(self.sent) == 3 else 0.0
            self.times.append(clock.now)
            return super().send(action)

    robot = Slow()
    robot.times = []  # type: ignore[attr-defined]
    report = drive(
        robot,
        lambda seen: np.tile(act(seen), (3, 1)),
        40,
        45,
        hz=HZ,
        limits=LIMITS,
        still=hold,
        **on(clock, 0.0),
    )
    assert (report.ticks, report.late) == (45, 1), "two seconds of one chunk are no silence"
    gaps = np.diff(robot.times)  # type: ignore[attr-defined]
    assert (gaps[4:] > 0.9 / HZ).all(), "after the tick that took half a second, none comes sooner than usual"
