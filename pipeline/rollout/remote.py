"""A policy behind a websocket as an agent: openpi's protocol, from the client's side.

A server of ours is sent our own inputs, which its metadata frame names, and the noise that a PolicyAgent would draw: it
gives the same episodes. Any other is sent openpi's LIBERO observation, with our inputs beside it under their own names.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from time import monotonic, sleep
from typing import Any

import numpy as np
import torch
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.inference.codec import MessageError, pack, unpack
from pipeline.inference.observation import window
from pipeline.inference.openpi import IMAGES, PROMPT, to_openpi
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import CAMERAS, DEPTH_CAMERAS, Observation
from pipeline.libero.suites import Task
from pipeline.provenance import without_credentials
from pipeline.rollout.agent import Agent, Unavailable, check_drawn, warn_of_pictures
from pipeline.rollout.metadata import action_steps, check_ours, is_ours, plain

TOKEN = "VLA_FLOW_AGENT_TOKEN"  # not the server's variable: what is exported for it must not go to any address
CONNECT_TIMEOUT_S = 20.0
RECONNECT_S, RETRY_S = 30.0, 1.0  # for a server that is being restarted, and between two tries
SILENCE_S = 120.0  # for one that computes for somebody else
LATER = (1001, 1012, 1013)  # close codes: going away, service restart, try again later
PROTOCOL = (1002, 1003, 1007, 1009, 1010)  # what the other side does not speak, or finds too large: again it would not
UNAUTHORISED = (401, 403)
BUSY = (
    "See whether it is busy, and speaks openpi's protocol; then the same command again: the episodes that are finished "
    "are kept"
)
STATES = ("joint_pos", "ee_pose", "gripper", "ee_wrench")
log = logging.getLogger(__name__)


class RemoteAgent:
    """Asks the server at `url`. It connects when an episode begins, and keeps the connection.

    Args:
        metadata: that the server sent when the evaluation was planned.
        n_action_steps: actions of a chunk to carry out.
        timeout_s: for one reply.

    Raises:
        PipelineError: in `reset` and `act`: the server is not there, serves something else by now, or does not speak
            openpi's protocol.
        Unavailable: in `act`: it is busy, out of memory or has ended.
        RuntimeError: in `act`: whatever else it says of an observation, or no reply: a mistake of the policy.
    """

    def __init__(self, url: str, metadata: Mapping[str, Any], n_action_steps: int, timeout_s: float) -> None:
        self.n_action_steps = n_action_steps
        self.url = without_credentials(url)
        self._address = url
        self._metadata = metadata
        self._inputs: tuple[str, ...] | None = tuple(metadata["inputs"]) if is_ours(metadata) else None
        self.cameras = tuple(IMAGES) if self._inputs is None else tuple(n for n in self._inputs if n not in STATES)
        self._timeout_s = timeout_s
        self._connection: ClientConnection | None = None
        self._instruction = ""
        self._generator = torch.Generator()
        history = (
            metadata["history"] if is_ours(metadata) else {"n_obs_steps": 1, "control_steps_apart": n_action_steps}
        )
        self._n_obs_steps: int = history["n_obs_steps"]
        self._stride = history["control_steps_apart"] // n_action_steps
        self._past: deque[dict[str, np.ndarray]] = deque(maxlen=1 + (self._n_obs_steps - 1) * self._stride)

    def reset(self, task: Task, seed: int) -> None:
        self._instruction = task.language
        self._generator = torch.Generator().manual_seed(seed)
        self._past.clear()
        if self._connection is None:
            self._connection, metadata = self._reconnected()
            if plain(metadata) != plain(self._metadata):
                self.close()
                raise PipelineError(
                    f"{self.url}: serves something else than when the evaluation began. Serve that again to go on, or "
                    "start the same command again to evaluate what is served now"
                )

    def act(self, obs: Observation) -> np.ndarray:
        request = self._foreign(obs) if self._inputs is None else self._ours(obs, self._inputs)
        reply = self._ask(pack(request))
        try:
            return np.asarray(reply["actions"])
        except (KeyError, TypeError):
            raise PipelineError(f"{self.url}: replied without 'actions': {str(reply)[:200]}") from None

    def close(self) -> None:
        """Disconnect. Harmless when repeated."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _reconnected(self) -> tuple[ClientConnection, Mapping[str, Any]]:
        """Connect, with patience for a server that is just being restarted, full, or computing for somebody else."""
        began = there = monotonic()  # `there`: when something listened last
        while True:
            try:
                return open_connection(self._address)
            except Silent:
                there = monotonic()
                if there - began >= SILENCE_S:
                    raise
            except NoServer:
                if monotonic() - there >= RECONNECT_S:
                    raise
            sleep(RETRY_S)

    def _ours(self, obs: Observation, inputs: tuple[str, ...]) -> dict[str, Any]:
        self._past.append({name: getattr(obs, name) if name in STATES else _picture(obs, name) for name in inputs})
        seen = window(self._past, self._n_obs_steps, self._stride)
        request: dict[str, Any] = {
            name: np.stack([x[name] for x in seen]) if len(seen) > 1 else seen[0][name] for name in inputs
        }
        noise = torch.randn(self._metadata["outputs"]["actions"]["shape"], generator=self._generator)
        return request | {PROMPT: self._instruction, "noise": noise.numpy()}

    def _foreign(self, obs: Observation) -> dict[str, Any]:
        state = {name: getattr(obs, name) for name in ("joint_pos", "ee_pose", "gripper")}
        images = {name: obs.images[name] for name in IMAGES}
        return {**images, **state, **to_openpi(images, state, self._instruction)}

    def _ask(self, message: bytes) -> Any:
        if self._connection is None:
            raise RuntimeError("reset() comes before act()")
        try:
            self._connection.send(message)
            reply = self._connection.recv(timeout=self._timeout_s)
        except TimeoutError:
            self.close()  # a late reply would be taken for the next one's
            raise RuntimeError(f"{self.url} gave no reply in {self._timeout_s:g} s") from None
        except (WebSocketException, OSError) as error:
            self.close()
            if _code(error) in PROTOCOL:
                raise PipelineError(f"{self.url}: the server closed the connection ({error})") from error
            raise Unavailable(f"{self.url}: the connection is lost ({error})") from error
        if isinstance(reply, str):
            code = _code_after(self._connection)
            self.close()
            said = f"{self.url} answered: {reply}"
            raise Unavailable(said) if code in LATER or _is_out_of_memory(reply) else RuntimeError(said)
        return _unpacked(reply, self.url)


class NoServer(PipelineError):
    """No server answers at the address, or it has no place for another client."""


class Silent(NoServer):
    """The server says nothing for now. openpi's says nothing to anybody while it computes."""


def is_remote(agent: str) -> bool:
    """Return whether an agent's name is the address of a server."""
    return agent.startswith(("ws://", "wss://"))


def plan_remote(
    url: str, sim: Sim, n_action_steps: int | None, timeout_s: float
) -> tuple[Callable[[], Agent], dict[str, Any]]:
    """Ask the server who it is; return what makes its agent, and its identity: url, metadata, n_action_steps.

    Args:
        n_action_steps: actions of a chunk to carry out; None: as many as the server names, else openpi's 5.

    Raises:
        PipelineError: no server there, or one that does not speak openpi's protocol, or whose metadata cannot be.
        ConfigError: it wants what the simulator does not have, or other action steps.
        DataError: its policy learnt from other pictures than the simulator draws.
    """
    connection, metadata = open_connection(url)
    connection.close()
    told, shown = plain(metadata), without_credentials(url)
    steps = n_action_steps or action_steps(told, shown)
    if is_ours(told):
        check_ours(told, shown)
        check_fits(told, shown, sim, steps)
    else:
        warn_of_pictures(sim)
    return partial(RemoteAgent, url, told, steps, timeout_s), {"url": shown, "metadata": told, "n_action_steps": steps}


def check_fits(told: Mapping[str, Any], url: str, sim: Sim, steps: int) -> None:
    """Refuse a policy of `stages.serve` that the simulator, or this number of action steps, is not for.

    Raises:
        ConfigError, DataError: see `plan_remote`.
    """
    if "own" in told:
        raise DataError(
            f"{url}: its policy was trained on data of another robot, which LIBERO's simulator cannot show. Run it on "
            "its robot"
        )
    lacking = sorted(set(told["inputs"]) - {*STATES, *CAMERAS, *DEPTH_CAMERAS})
    if lacking:
        raise ConfigError(f"{url}: its policy wants {', '.join(lacking)}, which the simulator does not have")
    horizon, apart = told["outputs"]["actions"]["shape"][0], told["history"]["control_steps_apart"]
    if steps > horizon or (told["history"]["n_obs_steps"] > 1 and apart % steps):
        raise ConfigError(
            f"eval_libero.n_action_steps is {steps}; the policy at {url} gives chunks of {horizon} actions, and "
            f"sees observations {apart} control steps apart"
        )
    check_drawn(told.get("sim") or {}, sim)


def open_connection(url: str) -> tuple[ClientConnection, Mapping[str, Any]]:
    """Connect; return the connection and the metadata that came first.

    Raises:
        NoServer: nobody answers, or there is no place.
        PipelineError: the token is wrong, or the server does not speak openpi's protocol.
    """
    shown = without_credentials(url)
    token = os.environ.get(TOKEN)
    headers = {"Authorization": f"Api-Key {token}"} if token else None
    with ExitStack() as until_opened:
        try:
            opening = connect(
                url,
                compression=None,
                max_size=None,
                open_timeout=CONNECT_TIMEOUT_S,
                ping_interval=None,  # openpi's server answers none while it computes
                close_timeout=2,
                proxy=None,
                additional_headers=headers,
            )
            connection = until_opened.enter_context(opening)
        except InvalidURI as error:
            raise ConfigError(f"--agent {shown}: {error.msg}. Give ws://host:port") from None
        except (InvalidHandshake, OSError) as error:  # a timeout is an OSError
            said = str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                raise Silent(f"{shown}: no policy server says a word in {CONNECT_TIMEOUT_S:g} s. {BUSY}") from None
            if isinstance(error, InvalidStatus) and error.response.status_code in UNAUTHORISED:
                raise PipelineError(f"{shown}: refused ({said}). Set {TOKEN} to the server's token") from None
            raise NoServer(
                f"{shown}: no policy server answers ({said}). Start it: python -m stages.serve; then the same command "
                "again: the episodes that are finished are kept"
            ) from None
        try:
            first = connection.recv(timeout=CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise Silent(f"{shown}: no metadata frame came in {CONNECT_TIMEOUT_S:g} s. {BUSY}") from None
        except (WebSocketException, OSError) as error:
            if _code(error) in LATER:
                raise NoServer(f"{shown}: not now ({error}). {BUSY}") from None
            raise PipelineError(f"{shown}: sends no metadata frame ({error!r}), as openpi's protocol has it") from None
        metadata = _unpacked(first, shown) if isinstance(first, bytes) else None
        if not isinstance(metadata, dict):
            raise PipelineError(
                f"{shown}: its first frame is {str(first)[:100]!r}, not the metadata of openpi's protocol"
            )
        until_opened.pop_all()  # from here on it is the caller's to close
    return connection, metadata


def _code(error: Exception) -> int | None:
    """Return the close code that the server sent; None if it sent none."""
    return error.rcvd.code if isinstance(error, ConnectionClosed) and error.rcvd is not None else None


def _code_after(connection: ClientConnection) -> int | None:
    """Return the close code that follows a server's last words; None if none follows."""
    try:
        connection.recv(timeout=2.0)
    except (WebSocketException, OSError) as error:
        return _code(error)
    return None


def _is_out_of_memory(said: str) -> bool:
    """Return whether an error's text is that of PyTorch, JAX or Python for memory that is not there."""
    return "out of memory" in said.lower() or "MemoryError" in said


def _picture(obs: Observation, camera: str) -> np.ndarray:
    return obs.depths[camera] if camera in obs.depths else obs.images[camera]


def _unpacked(message: bytes, url: str) -> Any:
    try:
        return unpack(message)
    except MessageError as error:
        raise PipelineError(f"{url}: does not speak openpi's protocol: {error}") from None
