"""The server, over real sockets: the protocol, many clients, limits, bad clients, and its end."""

import asyncio
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from pipeline.errors import ConfigError, DataError
from pipeline.inference.codec import pack, unpack
from pipeline.server.batching import Batching
from pipeline.server.websocket import Limits, PolicyServer, is_loopback, require_token
from tests.server.serving import HORIZON, Known, ask, client, request, serving

TOKEN = "0123456789abcdef0123"


def get(url: str, **headers: str) -> tuple[int, str]:
    """Return status and text of a plain HTTP GET."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metadata_comes_first_then_actions_for_observations() -> None:
    policy = Known()
    with serving(policy) as (_, address), connect(f"ws://{address}/any/path", compression=None, proxy=None) as ws:
        told = unpack(ws.recv())
        assert told["inputs"]["ee_pose"]["shape"] == [7] and told["n_action_steps"] == 4
        assert told["request"]["keys"]["agentview"] == ["agentview", "observation/image"]
        assert told["request"]["optional"] == {"noise": [HORIZON, 7]}
        given = request(3)
        reply = ask(ws, given)
        assert reply["actions"].shape == (HORIZON, 7) and reply["actions"].dtype == np.float32
        assert reply["actions"][0, 0] == pytest.approx(given["observation/image"].mean(), abs=1e-3)
        assert reply["actions"][1, 0] == len("do task 3")
        assert reply["server_timing"].keys() == {"infer_ms"} and reply["policy_timing"]["infer_ms"] > 0
        again = ask(ws, given)
        assert again["server_timing"].keys() == {"infer_ms", "prev_total_ms"}
        np.testing.assert_array_equal(again["actions"], reply["actions"])
    (seen, _) = policy.seen
    np.testing.assert_array_equal(seen["agentview"][0], given["observation/image"][:, ::-1])


def test_a_reply_does_not_depend_on_who_else_asks() -> None:
    policy = Known()
    requests = [request(seed) for seed in range(8)]
    with serving(policy) as (_, address), client(address) as ws:
        alone = [ask(ws, each)["actions"] for each in requests]
    assert policy.batches == [1] * 8
    with serving(policy, batching=Batching(wait_s=5.0)) as (_, address), ThreadPoolExecutor(8) as pool:
        together = threading.Barrier(8)

        def one(each: dict) -> np.ndarray:
            with client(address) as ws:
                together.wait(30)
                actions = ask(ws, each)["actions"]
                together.wait(30)
                return actions

        crowded = list(pool.map(one, requests))
    assert policy.batches[8:] == [8]
    np.testing.assert_allclose(crowded, alone, rtol=1e-6)


def test_pictures_of_different_sizes_are_not_mixed() -> None:
    policy = Known()
    small = request(1, observation_image=np.zeros((64, 64, 3), np.uint8))
    policy.gate.clear()
    with serving(policy) as (server, address), ThreadPoolExecutor(7) as pool:

        def one(each: dict) -> dict:
            with client(address) as ws:
                return ask(ws, each)

        first = pool.submit(one, request(2))
        wait_for(lambda: server._busy == 1 and not server._batcher.waiting)
        others = [pool.submit(one, each) for each in [request(0), small] * 3]
        wait_for(lambda: server._batcher.waiting == 6)
        policy.gate.set()
        for each in (first, *others):
            assert each.result(30)["actions"].shape == (HORIZON, 7)
    assert policy.batches == [1, 3, 3], "not computed one by one after a batch that failed"
    assert {seen["agentview"].shape[1] for seen in policy.seen} == {64, 224}


BAD = {
    "not msgpack": (b"\xc1", "not msgpack"),
    "a text": ("hello", "a text frame"),
    "no dict": (pack([1]), "not a dict"),
    "nothing in it": (pack({}), "missing: 'agentview' or 'observation/image'"),
    "a state that is not finite": (pack(request(observation_state=np.full(8, np.nan))), "holds nan"),
    "another type": (pack(request(observation_image=np.zeros((224, 224, 3)))), "float64"),
    "a crash": (pack(request(prompt="crash")), "the policy failed: RuntimeError: the device is lost"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_message_costs_its_sender_the_connection_and_nobody_else(what: str) -> None:
    message, said = BAD[what]
    with serving(Known()) as (server, address), client(address) as good:
        before = ask(good, request())["actions"]
        with client(address) as bad:
            bad.send(message)
            told = bad.recv(timeout=30)
            assert isinstance(told, str) and said in told and "Traceback" not in told
            with pytest.raises(ConnectionClosed) as closed:
                bad.recv(timeout=30)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
        np.testing.assert_array_equal(ask(good, request())["actions"], before)
        assert server.metrics.outcomes["failed" if what == "a crash" else "refused"] == 1


def test_what_the_policy_itself_refuses_is_the_clients_fault() -> None:
    class Strict(Known):
        def infer(self, *args: object) -> np.ndarray:
            raise DataError("observation: 'ee_pose' has a quaternion of norm 2")

    with serving(Strict()) as (server, address), client(address) as ws:
        ws.send(pack(request()))
        assert ws.recv(timeout=30) == "observation: 'ee_pose' has a quaternion of norm 2"
    assert server.metrics.outcomes == {"refused": 1}


def test_a_message_that_is_too_large_is_told() -> None:
    with serving(Known(), Limits(message_bytes=1 << 20)) as (server, address):
        with client(address) as ws, pytest.raises(ConnectionClosed) as closed:
            ws.send(b"\x00" * (2 << 20))
            ws.recv(timeout=30)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        assert "exceeds limit of 1048576 bytes" in closed.value.rcvd.reason
        wait_for(lambda: server.metrics.outcomes == {"oversized": 1})
        with client(address) as ws:
            ask(ws, request())


def handshake(address: str) -> socket.socket:
    """Return a bare socket on which a websocket is open."""
    host, port = address.split(":")
    bare = socket.create_connection((host, int(port)), timeout=30)
    bare.sendall(
        f"GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert bare.recv(12) == b"HTTP/1.1 101"
    return bare


def drained(bare: socket.socket) -> bytes:
    """Return all that comes until the server closes."""
    found = b""
    while chunk := bare.recv(1 << 16):
        found += chunk
    return found


def test_stalled_and_vanished_clients_are_let_go() -> None:
    limits = Limits(ping_s=0.3, message_s=0.5, idle_s=0.5)
    policy = Known()
    with serving(policy, limits) as (server, address):
        silent = handshake(address)  # answers no ping
        half = handshake(address)
        half.sendall(b"\x82\xfe\xff\xff\x00\x00\x00\x00" + b"half a message")
        begun = handshake(address)
        begun.sendall(b"\x02\x81\x00\x00\x00\x00x")  # the first fragment of several
        with handshake(address):
            pass  # gone at once
        with client(address) as idle:
            assert idle.recv(timeout=30) == "no whole message for 0.5 s"
            with pytest.raises(ConnectionClosed) as closed:
                idle.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "no whole message for 0.5 s")
        for bare in (silent, half, begun):
            with bare:
                drained(bare)
        policy.gate.clear()
        with handshake(address) as leaving:  # while its request is computed
            leaving.sendall(frame(pack(request())))
            while not server._busy:
                time.sleep(0.01)
        policy.gate.set()
        with client(address) as ws:
            ask(ws, request())
        wait_for(lambda: server._clients == 0 and server._busy == 0)
        assert server.metrics.outcomes["stalled"] == 1, "the first fragment of several"
        assert server.metrics.outcomes["idle"] in (2, 3), "nothing at all, or half a frame: the pings may be sooner"
        assert not server._heard


def test_who_only_listens_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.server.websocket.LATELY_S", 0.1)
    policy = Known()
    with serving(policy, batching=Batching(wait_s=5.0)) as (server, address), client(address), client(address) as ws:
        wait_for(lambda: server._clients == 2)
        time.sleep(0.2)
        started = time.monotonic()
        ask(ws, request())
        assert time.monotonic() - started < 4.0


def test_a_message_is_to_arrive_as_a_whole_in_time() -> None:
    with serving(Known(), Limits(message_s=0.5)) as (_, address), handshake(address) as dripping:
        dripping.sendall(frame(b"x", first=0x02))
        with pytest.raises(OSError):
            for _ in range(200):  # each fragment comes in time; for ten seconds in all
                dripping.sendall(frame(b"x", first=0x00))
                time.sleep(0.05)


def test_the_fragments_of_a_message_are_counted() -> None:
    with serving(Known(), Limits(fragments=8)) as (_, address), handshake(address) as bare:
        bare.sendall(frame(b"", first=0x02) + 7 * frame(b"", first=0x00))
        assert get(f"http://{address}/healthz")[0] == 200
        bare.sendall(frame(b"", first=0x00))
        assert b"a message of more than 8 fragments" in drained(bare)


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """Return one masked frame: a binary message, unless its first byte says otherwise."""
    return bytes([first, 0xFF]) + len(payload).to_bytes(8, "big") + bytes(4) + payload


def wait_for(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_health_and_metrics() -> None:
    with serving(Known()) as (_, address), client(address) as ws:
        assert get(f"http://{address}/healthz") == (200, "OK\n")
        ask(ws, request())
        with client(address) as bad:
            bad.send(b"")
            bad.recv(timeout=30)
        status, text = get(f"http://{address}/metrics")
        assert status == 200
        found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert found['vla_flow_requests_total{outcome="ok"}'] == "1"
        assert found['vla_flow_requests_total{outcome="refused"}'] == "1"
        assert found['vla_flow_request_seconds_bucket{le="+Inf"}'] == found["vla_flow_request_seconds_count"] == "1"
        assert (found["vla_flow_clients"], found["vla_flow_batches_total"]) in {("1", "1"), ("2", "1")}
        assert get(f"http://{address}/elsewhere")[0] == 426


def test_a_token_is_asked_for() -> None:
    with serving(Known(), token=TOKEN) as (_, address):
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": f"Bearer {TOKEN}"}):
            with pytest.raises(InvalidStatus) as refused, client(address, additional_headers=headers):
                pass
            assert refused.value.response.status_code == 401
        with client(address, additional_headers={"Authorization": f"Api-Key {TOKEN}"}) as ws:
            ask(ws, request())
        assert get(f"http://{address}/healthz")[0] == 200
        assert get(f"http://{address}/metrics")[0] == 401
        assert get(f"http://{address}/metrics", Authorization=f"Api-Key {TOKEN}")[0] == 200


def test_a_page_in_a_browser_is_kept_out() -> None:
    with serving(Known()) as (_, address), pytest.raises(InvalidStatus), client(address, origin="http://evil.example"):
        pass


def test_no_more_clients_than_allowed() -> None:
    with serving(Known(), Limits(clients=1)) as (server, address), client(address):
        with pytest.raises(InvalidStatus) as refused, client(address):
            pass
        assert refused.value.response.status_code == 503
        assert server._clients == 1


def test_a_full_queue_is_told() -> None:
    policy = Known()
    with (
        serving(policy, batching=Batching(queue=1, wait_s=0.0)) as (server, address),
        client(address) as first,
        client(address) as second,
        client(address) as third,
    ):
        policy.gate.clear()
        first.send(pack(request()))
        wait_for(lambda: server._busy == 1 and not server._batcher.waiting)
        second.send(pack(request()))
        wait_for(lambda: server._batcher.waiting == 1)
        third.send(pack(request()))
        assert third.recv(timeout=30) == "1 requests are waiting; try again later"
        policy.gate.set()
        for ws in (first, second):
            assert isinstance(ws.recv(timeout=30), bytes)
    assert server.metrics.outcomes == {"ok": 2, "busy": 1}


def test_who_came_while_others_shook_hands_is_told_to_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PolicyServer, "_answer_http", lambda server, ws, http_request: None)  # all came at once
    with serving(Known(), Limits(clients=1)) as (_, address), client(address) as ws:
        late = connect(f"ws://{address}", compression=None, proxy=None)
        with pytest.raises(ConnectionClosed, match="1 clients are connected") as closed:
            late.recv(timeout=30)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013
        assert ask(ws, request())["actions"].shape == (HORIZON, 7)


def test_stopped_it_replies_to_what_was_asked() -> None:
    policy = Known()
    policy.gate.clear()
    with serving(policy) as (server, address):
        ws = connect(f"ws://{address}", compression=None, proxy=None)
        ws.recv()
        ws.send(pack(request()))
        wait_for(lambda: server._busy == 1)
        threading.Timer(0.3, policy.gate.set).start()
    assert isinstance(ws.recv(timeout=30), bytes), "the server has ended, and its reply is here"
    with pytest.raises(ConnectionClosed) as closed:
        ws.recv(timeout=30)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
    with pytest.raises(OSError):
        connect(f"ws://{address}", proxy=None)


def test_stopped_it_takes_nothing_new_from_clients_that_never_rest() -> None:
    """Each gets what it asked for, and then the end: not one of them an error."""
    policy = Known()
    ends: list[int | None] = []

    def restless(address: str) -> None:
        ws = connect(f"ws://{address}", compression=None, proxy=None)
        try:
            ws.recv()
            while True:
                ws.send(pack(request()))
                assert isinstance(ws.recv(timeout=30), bytes)
        except ConnectionClosed as closed:
            ends.append(closed.rcvd.code if closed.rcvd else None)

    threads = []
    with serving(policy, Limits(grace_s=60.0)) as (_, address):
        threads = [threading.Thread(target=restless, args=(address,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(policy.batches) > 20)
        began = time.perf_counter()
    assert time.perf_counter() - began < 30
    for thread in threads:
        thread.join(30)
    assert ends == [1001] * 6


def test_stopped_it_ends_though_device_and_clients_hang() -> None:
    policy = Known()
    policy.gate.clear()
    limits = Limits(ping_s=1000.0, close_s=0.2, grace_s=0.2)
    try:
        with serving(policy, limits) as (server, address):
            asking = connect(f"ws://{address}", compression=None, proxy=None)
            asking.recv()
            asking.send(pack(request()))
            wait_for(lambda: server._busy == 1)
            silent = handshake(address)  # answers no close frame
            host, port = address.split(":")
            mute = socket.create_connection((host, int(port)))  # says nothing at all
        assert not policy.gate.is_set(), "the server has ended"
        with pytest.raises(ConnectionClosed, match="the server is stopping"):
            asking.recv(timeout=30)
        drained(silent)
        for bare in (silent, mute):
            bare.close()
    finally:
        policy.gate.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_inference_thread_is_told() -> None:
    class Ends(Known):
        def infer(self, *args: object) -> np.ndarray:
            raise SystemExit

    with serving(Ends()) as (_, address):
        for _ in range(2):  # who is waiting, and who comes later
            with client(address) as ws:
                ws.send(pack(request()))
                assert ws.recv(timeout=30) == "the inference thread has ended. Restart the server"
                with pytest.raises(ConnectionClosed) as closed:
                    ws.recv(timeout=30)
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013
        assert get(f"http://{address}/healthz") == (503, "the inference thread has ended. Restart the server\n")


def test_a_device_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.server.websocket.WATCH_S", 0.05)
    policy = Known()
    policy.gate.clear()
    with serving(policy, batching=Batching(hangs_s=0.3)) as (_, address):
        with client(address) as ws:
            ws.send(pack(request()))
            assert ws.recv(timeout=30) == "the inference thread hangs. If it stays so, restart the server"
            with pytest.raises(ConnectionClosed) as closed:
                ws.recv(timeout=30)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013
        assert get(f"http://{address}/healthz")[0] == 503
        policy.gate.set()
        deadline = time.monotonic() + 30
        while get(f"http://{address}/healthz")[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        with client(address) as ws:
            ws.send(pack(request()))
            assert unpack(ws.recv(timeout=30))["actions"].shape[1] == 7  # type: ignore[arg-type]


def test_out_of_memory_is_for_later() -> None:
    class Full(Known):
        def infer(self, *args: object) -> np.ndarray:
            raise MemoryError("none left")

    with serving(Full()) as (_, address), client(address) as ws:
        ws.send(pack(request()))
        assert ws.recv(timeout=30) == "the policy failed: MemoryError: none left"
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=30)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013


def test_an_address_that_is_taken_is_told() -> None:
    with serving(Known()) as (_, address):
        server, port = PolicyServer(Known()), int(address.split(":")[1])
        with pytest.raises(ConfigError, match=rf"--host 127\.0\.0\.1 --port {port}: cannot listen there"):
            asyncio.run(server.run("127.0.0.1", port, asyncio.Event()))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "robot.example"])
def test_others_get_in_with_a_token_only(host: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--host .*: other machines reach it\. Set the environment variable VLA_FLOW"
    ):
        require_token(host, None)
    require_token(host, TOKEN)
    with pytest.raises(ConfigError, match="has 5 characters; give at least 16"):
        require_token(host, "short")


def test_loopback_is_this_machine_alone() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.5.5.5", "::1", "localhost"))
    require_token("127.0.0.1", None)
