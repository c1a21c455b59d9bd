"""openpi's websocket protocol: a metadata frame, then an observation in and actions out, as often as the client likes.

A client that sends what is no observation gets the reason as a text frame, and is closed with code 1011; the others do
not notice. Nothing of an episode is kept between messages: they may come from any number of robots.

Protocol: Physical-Intelligence/openpi, serving/websocket_policy_server.py.
"""

import asyncio
import hmac
import http
import ipaddress
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from websockets.asyncio.server import Server as Listener
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from pipeline import __version__
from pipeline.errors import ConfigError, PipelineError
from pipeline.inference.codec import MessageError, pack, unpack
from pipeline.inference.openpi import PROMPT
from pipeline.server.batching import Batcher, Batching, Busy, Done
from pipeline.server.metrics import Metrics
from pipeline.server.request import NOISE, Inputs, Request, Served, parse

log = logging.getLogger(__name__)
TOKEN = "VLA_FLOW_TOKEN"
"""Environment variable of the token that clients have to show."""
WATCH_S = 1.0  # how often the server sees whether its inference thread is well
LATELY_S = 2.0  # a robot asks several times a second
STOPPING = "the server is stopping"
GOING_AWAY = 1001  # close codes of RFC 6455 and its registry
POLICY = 1008
TOO_LARGE = 1009
ERROR = 1011
TRY_LATER = 1013


@dataclass(frozen=True)
class Limits:
    """What a client may take of the server. Memory is bounded by clients x a few messages.

    Attributes:
        message_bytes: of one message; two pictures of 224 pixels take 0.3 MB.
        clients: connected at a time.
        fragments: of one message.
        ping_s: a client that does not answer a ping for so long is gone.
        message_s: for the fragments of a message to arrive once the first has, and for a reply to be taken.
        idle_s: for the next message, or its first fragment, to be there.
        close_s: for a client to answer a close frame; then the connection is dropped.
        grace_s: for requests under way when the server is stopped. It ends within grace_s + 3 close_s, even if the
            device or a client hangs.
    """

    message_bytes: int = 16 << 20
    clients: int = 128
    fragments: int = 4096
    ping_s: float = 20.0
    message_s: float = 30.0
    idle_s: float = 3600.0
    close_s: float = 3.0
    grace_s: float = 20.0


class PolicyServer:
    """Serves one policy.

    Args:
        policy: computes in one thread.
        token: that clients have to show in `Authorization: Api-Key TOKEN`; None: none.
        about: what else the metadata frame says, such as whose weights these are; plain values.
    """

    def __init__(
        self,
        policy: Served,
        limits: Limits | None = None,
        batching: Batching | None = None,
        token: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.metrics = Metrics()
        described = policy.describe()
        self._inputs = Inputs.of(described)
        self._metadata = pack(metadata({**described, **(about or {})}, self._inputs))
        self._policy = policy
        self._token = token
        self._clients = 0
        self._heard: dict[ServerConnection, float] = {}  # when each client came, or sent its newest request
        self._busy = 0  # requests read and not replied to
        self._stopping = False
        self._batcher: Batcher[Request, np.ndarray] = Batcher(
            self._compute, lambda request: request.shapes, batching or Batching(), self._askers
        )

    async def run(
        self, host: str, port: int, stop: asyncio.Event, started: Callable[[int], None] = lambda port: None
    ) -> None:
        """Serve until `stop` is set; then reply to what was asked, and close.

        Args:
            port: 0 for any free one.
            started: is told the port.

        Raises:
            ConfigError: a host other than loopback without a token, or an address that is not to be had.
        """
        require_token(host, self._token)
        limits = self.limits
        try:
            listener = await serve(
                self._handle,
                host,
                port,
                origins=[None],  # no page in a browser has a business here
                compression=None,
                process_request=self._answer_http,
                max_size=limits.message_bytes,
                max_queue=1,
                ping_interval=limits.ping_s,
                ping_timeout=limits.ping_s,
                close_timeout=limits.close_s,
            )
        except OSError as error:
            raise ConfigError(
                f"--host {host} --port {port}: cannot listen there ({error}). Give another port"
            ) from None
        started(next(iter(listener.sockets)).getsockname()[1])
        report, watch = asyncio.create_task(self._report()), asyncio.create_task(self._watch())
        try:
            await stop.wait()
        finally:
            report.cancel()
            watch.cancel()
            await self._close(listener)

    async def _watch(self) -> None:
        """Tell all who wait that they wait for nothing, when it is so."""
        while True:
            await asyncio.sleep(WATCH_S)
            if trouble := self._batcher.trouble:
                self._batcher.abandon(trouble)

    async def _close(self, listener: Listener) -> None:
        self._stopping = True
        listener.close(close_connections=False)
        deadline = perf_counter() + self.limits.grace_s
        while self._busy and perf_counter() < deadline:
            await asyncio.sleep(0.01)
        self._batcher.abandon(STOPPING)
        await asyncio.gather(*(self._hang_up(ws, GOING_AWAY, STOPPING) for ws in list(listener.connections)))
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.close_s):
                await listener.wait_closed()
        if not self._batcher.close(self.limits.close_s):  # blocks the loop, which has nothing left to do
            log.warning("the device is still computing: its thread is left behind")

    async def _hang_up(self, ws: ServerConnection, code: int, reason: str) -> None:
        """Close a connection, and drop it if the client does not take or answer the close frame."""
        try:
            async with asyncio.timeout(self.limits.close_s):
                await ws.close(code, _reason(reason))
        except TimeoutError:
            ws.transport.abort()

    def _answer_http(self, ws: ServerConnection, request: HttpRequest) -> Response | None:
        """Answer plain HTTP, and refuse who may not come in; None lets a websocket begin."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            if trouble := self._batcher.trouble:
                return ws.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{trouble}\n")
            return ws.respond(http.HTTPStatus.OK, "OK\n")
        if not self._authorised(request):
            return ws.respond(http.HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key TOKEN\n")
        if path == "/metrics":
            gauges = {"clients": self._clients, "queue": self._batcher.waiting, "batches_total": self._batcher.batches}
            return ws.respond(http.HTTPStatus.OK, self.metrics.text(gauges))
        if self._clients >= self.limits.clients:
            return ws.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{self._full()}\n")
        return None

    def _full(self) -> str:
        return f"{self.limits.clients} clients are connected"

    def _authorised(self, request: HttpRequest) -> bool:
        if self._token is None:
            return True
        given = request.headers.get_all("Authorization")
        return len(given) == 1 and hmac.compare_digest(given[0].encode(), f"Api-Key {self._token}".encode())

    async def _handle(self, ws: ServerConnection) -> None:
        """Serve one client, to its end."""
        self.metrics.connections += 1
        if self._clients >= self.limits.clients:  # many came while each was shaking hands
            self.metrics.count("busy", 0.0)
            await self._hang_up(ws, TRY_LATER, self._full())
            return
        self._clients += 1
        self._heard[ws] = perf_counter()
        try:
            async with asyncio.timeout(self.limits.message_s):
                await ws.send(self._metadata)
            last_ms: float | None = None
            while not self._stopping:
                message = await self._receive(ws)
                started = self._heard[ws] = perf_counter()
                self._busy += 1
                try:
                    await self._send(ws, await self._answer(message, started, last_ms))
                finally:
                    self._busy -= 1
                self._heard[ws] = perf_counter()  # again: the policy may have taken its time
                last_ms = 1e3 * (perf_counter() - started)
            await self._hang_up(ws, GOING_AWAY, STOPPING)
        except _Refused as refusal:
            self.metrics.count(refusal.outcome, 0.0)
            log.info("closing %s: %s", ws.remote_address, refusal)
            with suppress(ConnectionClosed, TimeoutError):
                await self._send(ws, str(refusal))
            await self._hang_up(ws, refusal.code, str(refusal))
        except TimeoutError:
            log.info("%s: stalled", ws.remote_address)
            self.metrics.count("stalled", 0.0)
            await self._hang_up(ws, POLICY, f"a message took more than {self.limits.message_s:g} s")
        except ConnectionClosed as closed:  # the end of most clients
            if closed.sent is not None and closed.sent.code == TOO_LARGE and not closed.rcvd_then_sent:
                self.metrics.count("oversized", 0.0)
        finally:
            self._clients -= 1
            del self._heard[ws]

    def _askers(self) -> int:
        """Return how many clients have come or asked lately: the others are not waited for."""
        since = perf_counter() - LATELY_S
        return sum(at > since for at in list(self._heard.values()))

    async def _receive(self, ws: ServerConnection) -> bytes:
        """Return the next message. Raises _Refused; TimeoutError for one that does not come to an end."""
        fragments: list[bytes] = []
        try:
            async with asyncio.timeout(self.limits.idle_s) as limit:
                async for fragment in ws.recv_streaming():
                    if isinstance(fragment, str):
                        raise _Refused("a text frame; an observation is sent as binary msgpack, as openpi-client does")
                    if not fragments:  # the whole of it counts: every fragment may come in time, and the last one never
                        limit.reschedule(asyncio.get_running_loop().time() + self.limits.message_s)
                    elif len(fragments) == self.limits.fragments:
                        raise _Refused(f"a message of more than {self.limits.fragments} fragments")
                    fragments.append(fragment)
        except TimeoutError:
            if fragments:
                raise
            raise _Refused(f"no whole message for {self.limits.idle_s:g} s", "idle", POLICY) from None
        return b"".join(fragments) if len(fragments) != 1 else fragments[0]

    async def _send(self, ws: ServerConnection, reply: bytes | str) -> None:
        async with asyncio.timeout(self.limits.message_s):
            await ws.send(reply)

    async def _answer(self, message: bytes, started: float, last_ms: float | None) -> bytes:
        """Return the reply to a message. Raises _Refused."""
        try:
            request = parse(unpack(message), self._inputs)
            done: Done[np.ndarray] = await asyncio.wrap_future(self._batcher.submit(request))
        except MessageError as error:
            raise _Refused(str(error)) from None
        except Busy as error:
            raise _Refused(str(error), "busy", TRY_LATER) from None
        except PipelineError as error:  # the policy's own look at the observation
            raise _Refused(str(error)) from None
        except Exception as error:
            log.exception("the policy failed")
            code = TRY_LATER if _is_out_of_memory(error) else ERROR
            raise _Refused(f"the policy failed: {type(error).__name__}: {error}"[:500], "failed", code) from None
        seconds = perf_counter() - started
        self.metrics.count("ok", seconds)
        timing = {"infer_ms": 1e3 * seconds} | ({} if last_ms is None else {"prev_total_ms": last_ms})
        policy = {"infer_ms": 1e3 * done.seconds, "batch": done.batch}
        return pack({"actions": done.result, "server_timing": timing, "policy_timing": policy})

    def _compute(self, requests: list[Request]) -> list[np.ndarray]:
        """Return the action chunks of requests of the same shapes: called in the inference thread."""
        names = requests[0].observation
        stacked = {name: np.stack([request.observation[name] for request in requests]) for name in names}
        noise = np.stack([request.noise for request in requests])
        return list(self._policy.infer(stacked, [request.instruction for request in requests], noise))

    async def _report(self, every_s: float = 60.0) -> None:
        """Log the rate, while there is one."""
        before = 0
        while True:
            await asyncio.sleep(every_s)
            now = self.metrics.outcomes.total()
            if now > before:
                log.info("%.1f requests/s of %d clients", (now - before) / every_s, self._clients)
            before = now


class _Refused(Exception):
    """What a client is told before it is closed."""

    def __init__(self, text: str, outcome: str = "refused", code: int = ERROR) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.code = code


def metadata(described: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """Return the first frame that a client gets: what the policy takes and gives, and under which keys."""
    request = {"keys": inputs.keys, "instruction": PROMPT, "optional": {NOISE: list(inputs.chunk)}}
    return json.loads(json.dumps({"server": f"vla-flow {__version__}", "request": request, **described}))


def require_token(host: str, token: str | None) -> None:
    """Raise ConfigError for an address that others reach, without a token."""
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: other machines reach it. Set the environment variable {TOKEN} to a secret, which "
            "clients send as Authorization: Api-Key SECRET; or use --host 127.0.0.1"
        )
    if token is not None and (len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError(f"{TOKEN}: has {len(token)} characters; give at least 16 of ASCII without spaces")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, not imported here


def _reason(text: str) -> str:
    """Return what fits a close frame: 123 bytes."""
    return text.encode()[:120].decode(errors="ignore")
