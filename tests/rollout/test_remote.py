"""A policy behind a websocket as an agent: what it is sent, what it does, and what is said when it is not there."""

import re
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from pipeline.encode.clip import ClipEncoder
from pipeline.encode.settings import GridParams
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.inference.codec import pack
from pipeline.inference.openpi import STATE, to_openpi
from pipeline.inference.policy import Policy
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Observation
from pipeline.libero.suites import Task
from pipeline.policy import bundle
from pipeline.rollout import remote
from pipeline.rollout.agent import Agent, PolicyAgent, Unavailable
from pipeline.rollout.metadata import plain
from pipeline.rollout.remote import NoServer, RemoteAgent, open_connection, plan_remote
from pipeline.server.batching import Busy
from pipeline.server.websocket import Limits, PolicyServer
from tests.encode import tiny
from tests.inference.make import bundle as make_bundle
from tests.inference.make import observation
from tests.server.serving import Known, serving

HALF = 2e-3  # of actions: features are of half precision


def seen(seed: int = 0) -> Observation:
    """Return what the simulator may show."""
    made = observation(seed)
    images = {name: made.pop(name) for name in ("agentview", "eye_in_hand")}
    return Observation(**made, ee_wrench=np.zeros(6, np.float32), images=images)


class Foreign:
    """A policy that is not ours: it says nothing of itself, and takes openpi's observation."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Foreign:
    """Make the server one that keeps requests, and whose metadata frame is empty, as openpi's is for LIBERO."""
    kept = Foreign()
    module = "pipeline.server.websocket"
    monkeypatch.setattr(f"{module}.metadata", lambda described, inputs: {})
    parse = __import__(module, fromlist=["parse"]).parse
    monkeypatch.setattr(f"{module}.parse", lambda tree, inputs: kept.requests.append(tree) or parse(tree, inputs))
    return kept


def planned(address: str, sim: Sim = tiny.SIM, steps: int | None = None) -> Any:
    make, _ = plan_remote(f"ws://{address}", sim, steps, 30.0)
    return make()


def test_another_policy_is_sent_openpis_observation_and_ours(foreign: Foreign, task: Task) -> None:
    with serving(Known()) as (_, address):
        agent = planned(address)
        assert isinstance(agent, Agent)
        assert (agent.cameras, agent.n_action_steps) == (("agentview", "eye_in_hand"), 5)
        agent.reset(task, 0)
        obs = seen()
        actions = agent.act(obs)
        agent.close()
    (request,) = foreign.requests
    state = {"ee_pose": obs.ee_pose, "gripper": obs.gripper, "joint_pos": obs.joint_pos}
    for name, value in to_openpi(obs.images, state, task.language).items():
        np.testing.assert_array_equal(request[name], value)
    np.testing.assert_array_equal(request["agentview"], obs.images["agentview"])
    assert request[STATE].shape == (8,) and request["observation/image"].shape == (224, 224, 3)
    assert actions[1, 0] == len(task.language)


def test_other_pictures_than_policies_of_others_learn_from_are_told(
    foreign: Foreign, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(Known()) as (_, address):
        planned(address, replace(tiny.SIM, image_size=256, render="full"))
        assert "the policy gets pictures of" not in caplog.text
        planned(address)
    assert "pictures of sim.image_size 24, sim.render fast; if it learnt from LIBERO's own" in caplog.text
    assert "Add --set sim.image_size=256 --set sim.render=full" in caplog.text


@pytest.mark.parametrize("n_obs_steps", [1, 2])
def test_our_own_policy_does_the_same_as_in_the_simulator(tmp_path: Path, task: Task, n_obs_steps: int) -> None:
    tiny.register(tmp_path)
    grid = GridParams(1, -1) if n_obs_steps > 1 else None
    path = make_bundle(tmp_path / "policy", grid=grid, n_obs_steps=n_obs_steps)
    local = PolicyAgent(bundle.load(path), ClipEncoder(tiny.PARAMS, grid=grid), tiny.SIM, n_action_steps=1)
    with serving(Policy.load(path, "cpu")) as (_, address):
        remote = planned(address, steps=1)
        assert remote.cameras == local.cameras and remote.n_action_steps == 1
        for seed in (5, 6):
            local.reset(task, seed)
            remote.reset(task, seed)
            for step in range(4):
                expected = local.act(seen(10 * seed + step))
                np.testing.assert_allclose(remote.act(seen(10 * seed + step)), expected, atol=HALF)
        remote.close()


def test_what_the_server_is_identifies_the_agent() -> None:
    with serving(Known()) as (_, address):
        _, identity = plan_remote(f"ws://{address}", tiny.SIM, None, 30.0)
        assert identity["url"] == f"ws://{address}" and identity["n_action_steps"] == 4
        assert identity["metadata"]["inputs"]["ee_pose"]["shape"] == [7]
        with pytest.raises(
            ConfigError, match=r"eval_libero\.n_action_steps is 9; the policy at ws.* chunks of 6 actions"
        ):
            plan_remote(f"ws://{address}", tiny.SIM, 9, 30.0)


def test_a_policy_that_wants_what_libero_has_not_is_refused() -> None:
    other = Known()
    other.described["inputs"] = {"laser": {"shape": [9], "dtype": "float32"}, **other.described["inputs"]}  # type: ignore[dict-item]
    with (
        serving(other) as (_, address),
        pytest.raises(ConfigError, match="its policy wants laser, which the simulator"),
    ):
        plan_remote(f"ws://{address}", tiny.SIM, None, 30.0)


def test_other_pictures_than_it_learnt_from_are_refused() -> None:
    policy = Known()
    policy.described["sim"] = {"image_size": 256}
    with (
        serving(policy) as (_, address),
        pytest.raises(DataError, match=r"sim\.image_size 256.*Set sim\.image_size: 256"),
    ):
        plan_remote(f"ws://{address}", tiny.SIM, None, 30.0)


def test_a_complaint_of_the_server_is_a_mistake_of_the_policy(task: Task) -> None:
    with serving(Known()) as (_, address):
        agent = planned(address)
        agent.reset(replace(task, language="crash"), 0)
        with pytest.raises(
            RuntimeError, match=r"ws://.* answered: the policy failed: RuntimeError: the device is lost"
        ):
            agent.act(seen())
        agent.reset(task, 0)
        assert agent.act(seen()).shape == (6, 7), "the next episode has a new connection"
        agent.close()


def test_no_reply_in_time_is_a_mistake_of_the_policy(task: Task) -> None:
    policy = Known()
    with serving(policy) as (_, address):
        make, _ = plan_remote(f"ws://{address}", tiny.SIM, None, 0.3)
        agent = make()
        agent.reset(task, 0)
        policy.gate.clear()
        with pytest.raises(RuntimeError, match=r"gave no reply in 0\.3 s"):
            agent.act(seen())
        policy.gate.set()


@pytest.mark.parametrize(("error", "said"), [(MemoryError("none left"), "none left"), (Busy("full"), "full")])
def test_a_server_that_cannot_answer_now_is_no_mistake_of_the_policy(task: Task, error: Exception, said: str) -> None:
    class Full(Known):
        def infer(self, *args: object) -> np.ndarray:
            raise error

    with serving(Full()) as (_, address):
        agent = planned(address)
        agent.reset(task, 0)
        with pytest.raises(Unavailable, match=rf"ws://.* answered: .*{said}"):
            agent.act(seen())


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (1011, "Traceback: torch.OutOfMemoryError: CUDA out of memory.", Unavailable),
        (1011, "Traceback: KeyError: 'observation/state'", RuntimeError),
        (1013, "busy", Unavailable),
        (1012, None, Unavailable),
        (1001, None, Unavailable),
        (1009, None, PipelineError),
    ],
)
def test_what_a_server_of_others_says_is_told_apart(
    task: Task, code: int, text: str | None, expected: type[Exception]
) -> None:
    def handle(ws: ServerConnection) -> None:
        ws.send(pack({}))
        for _ in ws:
            if text is not None:
                ws.send(text)
            ws.close(code)

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        agent = planned(f"127.0.0.1:{server.socket.getsockname()[1]}")
        agent.reset(task, 0)
        with pytest.raises(expected):
            agent.act(seen())
        server.shutdown()


def test_a_server_that_is_restarted_is_waited_for(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Known()) as (_, address):
        agent = planned(address)
        tries: list[str] = []

        def later(url: str) -> Any:
            tries.append(url)
            if len(tries) < 3:
                raise remote.NoServer("not yet")
            return open_connection(url)

        monkeypatch.setattr(remote, "open_connection", later)
        monkeypatch.setattr(remote, "RETRY_S", 0.0)
        agent.reset(task, 0)
        assert len(tries) == 3 and agent.act(seen()).shape == (6, 7)
        agent.close()


def test_a_place_is_waited_for(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all came at once, so that the handshake did not tell that there is none."""
    monkeypatch.setattr(remote, "RETRY_S", 0.05)
    monkeypatch.setattr(PolicyServer, "_answer_http", lambda server, ws, http_request: None)
    with serving(Known(), Limits(clients=1)) as (server, address):
        first, _ = open_connection(f"ws://{address}")
        with pytest.raises(NoServer, match=r"not now \(.*1 clients are connected"):
            open_connection(f"ws://{address}")
        assert len(server._heard) == 1, "who is refused is not waited for"
        agent = RemoteAgent(f"ws://{address}", plain(Known().describe() | {"request": {}}), 4, 30.0)
        threading.Timer(0.5, first.close).start()
        with pytest.raises(PipelineError, match="serves something else"):  # it was let in
            agent.reset(task, 0)


@pytest.mark.parametrize("shakes_hands", [True, False], ids=["no metadata", "no handshake"])
def test_a_server_that_computes_for_somebody_else_is_waited_for(
    task: Task, monkeypatch: pytest.MonkeyPatch, shakes_hands: bool
) -> None:
    """openpi's computes in its event loop: whoever comes meanwhile hears nothing at all."""
    monkeypatch.setattr(remote, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(remote, "RECONNECT_S", 0.0)
    monkeypatch.setattr(remote, "RETRY_S", 0.0)
    busy = threading.Event()
    busy.set()

    def serve_one(connection: ServerConnection) -> None:
        while shakes_hands and busy.is_set():
            time.sleep(0.01)
        with suppress(ConnectionClosed):
            connection.send(pack({"n_action_steps": 5}))
            connection.recv()
            connection.send(pack({"actions": np.zeros((5, 7), np.float32)}))

    def hold(connection: ServerConnection, http_request: Any) -> None:
        while not shakes_hands and busy.is_set():
            time.sleep(0.01)

    with serve(serve_one, "127.0.0.1", 0, process_request=hold) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        agent = RemoteAgent(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", {"n_action_steps": 5}, 5, 30.0)
        threading.Timer(1.0, busy.clear).start()
        agent.reset(task, 0)
        assert not busy.is_set() and agent.act(seen()).shape == (5, 7)
        agent.close()
        busy.set()
        with pytest.raises(
            PipelineError, match=r"no (policy server says a word|metadata frame came) in 0\.3 s\. See wh"
        ):
            open_connection(agent._address)
        busy.clear()
        server.shutdown()


def test_a_server_that_is_gone_is_told(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RECONNECT_S", 0.0)
    with serving(Known()) as (_, address):
        agent = planned(address)
        agent.reset(task, 0)
        agent.act(seen())
    with pytest.raises(Unavailable, match="the connection is lost"):
        agent.act(seen())
    with pytest.raises(PipelineError, match=r"no policy server answers .*Start it: python -m stages\.serve.*are kept"):
        agent.reset(task, 1)


def test_another_policy_at_the_same_address_is_refused(task: Task) -> None:
    with serving(Known()) as (_, address):
        agent = planned(address)
    with serving(Known(("gripper",))) as (_, other):
        agent = RemoteAgent(f"ws://{other}", agent._metadata, 4, 30.0)
        with pytest.raises(PipelineError, match="serves something else than when the evaluation began"):
            agent.reset(task, 0)


def test_a_token_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "0123456789abcdef"
    with serving(Known(), token=token) as (_, address):
        with pytest.raises(PipelineError, match="Set VLA_FLOW_AGENT_TOKEN to the server's token"):
            open_connection(f"ws://{address}")
        monkeypatch.setenv("VLA_FLOW_AGENT_TOKEN", token)
        open_connection(f"ws://{address}")[0].close()


def test_a_secret_in_an_address_stays_there(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RECONNECT_S", 0.0)
    with serving(Known()) as (_, address):
        make, identity = plan_remote(f"ws://me:secret@{address}/p?key=secret", tiny.SIM, None, 30.0)
        assert identity["url"] == f"ws://{address}/p"
        agent: Any = make()
        agent.reset(task, 0)
        with pytest.raises(RuntimeError, match=r"answered") as told:
            agent.reset(replace(task, language="crash"), 0)
            agent.act(seen())
        assert "secret" not in str(told.value) and f"ws://{address}/p" in str(told.value)
    with pytest.raises(PipelineError) as gone:
        agent.reset(task, 0)
    assert "secret" not in str(gone.value)
    with pytest.raises(ConfigError) as none:
        open_connection("ws://me:secret@")
    assert "secret" not in str(none.value)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "8", [8], 10**9])
def test_action_steps_that_cannot_be_are_named(steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "pipeline.server.websocket"
    monkeypatch.setattr(f"{module}.metadata", lambda described, inputs: {"n_action_steps": steps})
    with serving(Known()) as (_, address):
        with pytest.raises(
            PipelineError, match=rf"n_action_steps is {re.escape(repr(str(steps)))}, not a whole number"
        ):
            planned(address)
        assert planned(address, steps=3).n_action_steps == 3, "what is asked for stands above what the server says"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("inputs", [], r"inputs is '\[\]', not inputs by name"),
        ("history", {"n_obs_steps": 0, "control_steps_apart": 4}, r"history\.n_obs_steps is '0', not a whole number"),
        ("history", {"n_obs_steps": 1}, r"history\.control_steps_apart is 'None', not a whole number"),
        ("outputs", {"actions": {"shape": [6, 8]}}, r"outputs\.actions\.shape is '\[6, 8\]', not \[H, 7\]"),
        ("outputs", {"actions": {"shape": [10**9, 7]}}, r"outputs\.actions\.shape is .*H from 1 to 1000"),
        ("outputs", {}, r"outputs\.actions\.shape is 'None'"),
        ("sim", 3, "sim is '3', not settings by name"),
    ],
)
def test_metadata_that_cannot_be_is_named(name: str, value: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"request": {}, **Known().describe(), name: value}
    monkeypatch.setattr("pipeline.server.websocket.metadata", lambda described, inputs: made)
    with serving(Known()) as (_, address), pytest.raises(PipelineError, match=said):
        planned(address)


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="Give ws://host:port"):
        open_connection("ws://")
    with pytest.raises(PipelineError, match="no policy server answers"):
        open_connection("ws://127.0.0.1:1")


def test_metadata_becomes_plain_values() -> None:
    told = {"a": np.arange(2), b"b": {"c": np.float32(1.5), "d": b"x"}, "e": [np.zeros((1, 1))]}
    assert plain(told) == {"a": [0, 1], "b'b'": {"c": 1.5, "d": "b'x'"}, "e": [[[0.0]]]}
