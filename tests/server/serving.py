"""A small policy of known answers, and a server of it in a thread."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from pipeline.inference.codec import pack, unpack
from pipeline.server.batching import Batching
from pipeline.server.websocket import Limits, PolicyServer
from tests.imports import ROOT

HORIZON = 6


class Known:
    """Actions that tell what came in: means of the inputs, the length of the instruction, the noise."""

    def __init__(
        self, proprio: tuple[str, ...] = ("ee_pose", "gripper"), n_obs_steps: int = 1, keep: bool = True
    ) -> None:
        sizes = {"joint_pos": 7, "ee_pose": 7, "gripper": 2}
        images = {name: {"shape": ["H", "W", 3], "dtype": "uint8"} for name in ("agentview", "eye_in_hand")}
        states = {name: {"shape": [sizes[name]], "dtype": "float32"} for name in proprio}
        self.n_obs_steps = n_obs_steps
        self.described = {
            "inputs": images | states,
            "history": {"n_obs_steps": n_obs_steps, "control_steps_apart": 4},
            "outputs": {"actions": {"shape": [HORIZON, 7], "dtype": "float32"}},
            "horizon": HORIZON,
            "n_action_steps": 4,
        }
        self.keep = keep
        self.batches: list[int] = []
        self.seen: list[dict[str, np.ndarray]] = []
        self.gate = threading.Event()
        self.gate.set()

    def describe(self) -> dict[str, Any]:
        return self.described

    def infer(
        self, observations: Mapping[str, Any], instructions: str | Sequence[str], noise: np.ndarray
    ) -> np.ndarray:
        assert self.gate.wait(60)
        if self.keep:
            self.batches.append(len(noise))
            self.seen.append(dict(observations))
        if any("crash" in text for text in instructions):
            raise RuntimeError("the device is lost")
        actions = np.array(noise, np.float32)
        for column, array in enumerate(observations.values()):
            axes = tuple(range(1, array.ndim))
            actions[:, 0, column] = array.mean(axes)
        actions[:, 1, 0] = [len(text) for text in instructions]
        return actions


@contextmanager
def serving(
    policy: Any, limits: Limits | None = None, batching: Batching | None = None, token: str | None = None
) -> Iterator[tuple[PolicyServer, str]]:
    """Yield a server that runs, and its address without the scheme."""
    server = PolicyServer(policy, limits, batching, token)
    ready, port, failed = threading.Event(), [0], []
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def started(given: int) -> None:
        port[0] = given
        ready.set()

    def run() -> None:
        try:
            loop.run_until_complete(server.run("127.0.0.1", 0, stop, started))
        except BaseException as error:
            failed.append(error)
            ready.set()
        finally:  # as asyncio.run does
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left))

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    try:
        yield server, f"127.0.0.1:{port[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive() and not failed, failed
        loop.close()


@contextmanager
def serving_elsewhere(message_bytes: int = 16 << 20, port: int = 0) -> Iterator[tuple[int, str]]:
    """Yield process id and address of a server in a process of its own, whose memory is nobody else's."""
    code = f"from tests.server.serving import serve_known; serve_known({message_bytes}, {port})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, f"127.0.0.1:{int(process.stdout.readline())}"
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def serve_known(message_bytes: int, port: int) -> None:
    """Serve until SIGTERM."""

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        server = PolicyServer(Known(keep=False), Limits(message_bytes=message_bytes))
        await server.run("127.0.0.1", port, stop, lambda got: print(got, flush=True))

    asyncio.run(run())


@contextmanager
def client(address: str, **options: Any) -> Iterator[ClientConnection]:
    """Yield a connection that has read the metadata."""
    with connect(f"ws://{address}", compression=None, max_size=None, proxy=None, **options) as ws:
        unpack(ws.recv(timeout=30))
        yield ws


def ask(ws: ClientConnection, request: Any) -> dict[str, Any]:
    """Return the reply; fail on an error."""
    ws.send(request if isinstance(request, bytes) else pack(request))
    reply = ws.recv(timeout=60)
    assert isinstance(reply, bytes), reply
    return unpack(reply)


def request(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return openpi's LIBERO request, with made-up content; None leaves a key out."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {
        "observation/image": rng.integers(0, 256, (224, 224, 3), np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (224, 224, 3), np.uint8),
        "observation/state": rng.normal(size=8),
        "prompt": f"do task {seed}",
    }
    names = {name.replace("/", "_"): name for name in made}
    made |= {names.get(name, name): value for name, value in changes.items()}
    return {name: value for name, value in made.items() if value is not None}
