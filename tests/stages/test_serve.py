"""The server as a process: its command, openpi's own client in an environment of its own, and its end."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import connect

from examples.openpi_loop import OpenpiLoop
from pipeline.errors import AssetError, ConfigError, DataError, PipelineError
from pipeline.inference.codec import pack, unpack
from pipeline.inference.openpi import JOINTS, mirrored, padded, to_openpi
from pipeline.inference.policy import Policy
from pipeline.libero.sim.simulator import Observation
from pipeline.libero.suites import Task
from pipeline.rollout.agent import Agent
from pipeline.rollout.named import plan_named
from stages import serve
from tests.encode import tiny
from tests.environments import environment
from tests.imports import ROOT
from tests.inference.exports import SIM
from tests.inference.make import BOWL, bundle, observation
from tests.server.serving import Known, ask, client, serving

HALF = 2e-3  # of actions: features are of half precision
# The stage's own main, where open_clip knows the tests' small CLIP.
START = """
import sys
from pathlib import Path
from tests.encode import tiny
tiny.register(Path(sys.argv.pop(1)))
from stages import cli, serve
cli.run(serve.main)
"""
CLIENT = """
import json, sys
import numpy as np
from openpi_client import image_tools, websocket_client_policy
assert np.__version__ < "2"
with np.load(sys.argv[2], allow_pickle=False) as given:
    request = {name: given[name] for name in given.files}
prompt, large = str(request.pop("prompt")), request.pop("large")
policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
told = policy.get_server_metadata()
replies = [policy.infer({**request, "prompt": prompt}) for _ in range(2)]
policy.reset()
try:
    policy.infer({**request, "observation/state": np.full(8, np.nan), "prompt": prompt})
    error = ""
except RuntimeError as e:
    error = str(e)
np.savez(sys.argv[3], actions=replies[0]["actions"], again=replies[1]["actions"],
         small=image_tools.resize_with_pad(large, 224, 224))
print(json.dumps({"horizon": told["horizon"], "timing": replies[1]["server_timing"], "error": error}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and a tiny CLIP that open_clip knows."""
    path = tmp_path_factory.mktemp("serve")
    tiny.register(path)
    bundle(path / "policy")
    return path


Start = Callable[..., tuple[subprocess.Popen[str], int]]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start the stage; return its process and port."""
    processes: list[subprocess.Popen[str]] = []

    def run(*argv: str) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", START, str(folder), "--policy", str(folder / "policy"), "--port", "0", *argv]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"on cpu at ws://127\.0\.0\.1:(\d+)", line):
                return process, int(found[1])
        raise AssertionError(said)

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def openpi_request(seed: int = 0) -> dict:
    """What openpi's LIBERO example sends, and the joints."""
    seen = observation(seed, (224, 224))
    images = {name: seen[name] for name in ("agentview", "eye_in_hand")}
    return to_openpi(images, {name: seen[name] for name in ("ee_pose", "gripper", "joint_pos")}, BOWL)


@pytest.mark.slow
def test_served_actions_are_the_policys_and_a_signal_ends_it(folder: Path, start: Start) -> None:
    process, port = start("--device", "cpu")
    policy = Policy.load(folder / "policy", "cpu")
    request = openpi_request()
    noise = policy.noise([7])
    with client(f"127.0.0.1:{port}") as ws:
        actions = ask(ws, {**request, "noise": noise[0]})["actions"]
        policy.reset(7)
        np.testing.assert_allclose(actions, policy.act(observation(0, (224, 224)), BOWL), atol=HALF)
        no_joints = {name: value for name, value in request.items() if name != JOINTS}
        ws.send(pack(no_joints))
        assert "missing: 'joint_pos' or 'observation/joint_position'" in str(ws.recv(timeout=60))
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(60) == 0, said
    assert "stopped: 1 ok, 1 refused" in said and "Traceback" not in said


@pytest.fixture(scope="module")
def openpi_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with openpi-client, which wants numpy < 2, in an environment of its own.

    It imports typing_extensions, too, without saying so in its requirements.
    """
    return environment(tmp_path_factory.mktemp("openpi") / "env", "openpi-client==0.1.2", "typing-extensions")


@pytest.mark.slow
def test_openpis_own_client_is_served(folder: Path, start: Start, openpi_python: Path, tmp_path: Path) -> None:
    process, port = start()
    request = openpi_request()
    large = np.random.default_rng(1).integers(0, 256, (256, 320, 3), np.uint8)
    np.savez(tmp_path / "given.npz", large=large, **request)
    argv = [str(port), str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [openpi_python, "-c", CLIENT, *argv], capture_output=True, text=True, timeout=120, env=clean, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["horizon"] == 4 and set(told["timing"]) == {"infer_ms", "prev_total_ms"}
    assert "'observation/state' holds nan in component 0" in told["error"] and "Traceback" not in told["error"]
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_array_equal(found["actions"], found["again"])
        np.testing.assert_array_equal(found["small"], padded(large))
        with client(f"127.0.0.1:{port}") as ws:
            np.testing.assert_allclose(ask(ws, request)["actions"], found["actions"], atol=1e-6)
    np.testing.assert_array_equal(mirrored(request["observation/image"]), observation(0, (224, 224))["agentview"])
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.mark.slow
def test_openpis_loop_acts_as_the_policy_does(
    start: Start, openpi_python: Path, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    _, port = start()
    monkeypatch.setenv("OPENPI_URL", f"ws://127.0.0.1:{port}")
    monkeypatch.setenv("OPENPI_PYTHON", str(openpi_python))
    loop = OpenpiLoop(tiny.SIM)
    assert isinstance(loop, Agent) and loop.n_action_steps == 2
    seen = observation(3, (224, 224))
    images = {name: seen.pop(name) for name in ("agentview", "eye_in_hand")}
    loop.reset(task, 0)
    actions = loop.act(Observation(**seen, ee_wrench=np.zeros(6, np.float32), images=images))
    with client(f"127.0.0.1:{port}") as ws:
        expected = ask(ws, to_openpi(images, seen, task.language))["actions"]
    np.testing.assert_allclose(actions, expected[:2], atol=1e-5)


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="device gpu: not to be used here"):
        serve.main(["--policy", str(folder / "policy"), "--device", "gpu"])
    with pytest.raises(ConfigError, match="device gpu: not to be used here"):
        Policy.load(folder / "policy", "gpu")


@pytest.mark.slow
def test_what_decides_the_actions_is_in_the_metadata(folder: Path, start: Start, tmp_path: Path) -> None:
    """An evaluation that goes on compares them: the same weights can be used otherwise."""
    told = []
    bundle(tmp_path / "policy", sampling_steps=2)
    for path in (folder / "policy", tmp_path / "policy"):
        _, port = start("--policy", str(path))
        with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as ws:
            told.append(unpack(ws.recv()))  # type: ignore[arg-type]
    first, second = told
    assert first["weights_sha256"] == second["weights_sha256"] and first["sampling_steps"] != 2
    assert {name for name in first if first[name] != second[name]} == {"sampling_steps"}
    assert (first["device"], first["precision"]) == ("cpu", "fp32")


@pytest.mark.parametrize(
    "wrong", [("--max-batch", "0"), ("--max-clients", "-1"), ("--port", "99999"), ("--max-wait-ms", "nan")]
)
def test_numbers_that_cannot_be_are_refused(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve.main(list(wrong))
    assert f"argument {wrong[0]}: invalid" in capsys.readouterr().err


def test_openpis_loop_says_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Known()) as (_, address):
        monkeypatch.setenv("OPENPI_URL", f"ws://me:secret@{address}?key=secret")
        _, identity = plan_named("examples.openpi_loop:OpenpiLoop", None, SIM)
    assert identity["identity"]["url"] == f"ws://{address}"
    assert identity["identity"]["metadata"]["inputs"]["gripper"]["shape"] == [2]


@pytest.mark.slow
def test_openpis_loop_refuses_other_pictures_than_the_policys(
    start: Start, openpi_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = start()
    monkeypatch.setenv("OPENPI_URL", f"ws://127.0.0.1:{port}")
    monkeypatch.setenv("OPENPI_PYTHON", str(openpi_python))
    with pytest.raises(DataError, match=r"sim\.image_size"):
        OpenpiLoop(replace(tiny.SIM, image_size=48))


def test_openpis_loop_tells_that_its_client_has_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENPI_PYTHON", str(tmp_path / "python"))
    with pytest.raises(PipelineError, match=r"OPENPI_PYTHON: .*/python cannot be started .*Unset it"):
        OpenpiLoop(SIM)
    monkeypatch.setenv("OPENPI_PYTHON", sys.executable)  # which has no openpi-client
    monkeypatch.setenv("OPENPI_URL", "ws://me:secret@127.0.0.1:1")
    with pytest.raises(PipelineError, match=r"openpi-client has ended; .*server at ws://127\.0\.0\.1:1 runs"):
        OpenpiLoop(SIM)


def test_other_machines_are_not_let_in_without_a_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLA_FLOW_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0: other machines reach it"):
        serve.main(["--policy", str(folder / "policy"), "--host", "0.0.0.0"])
    monkeypatch.setenv("VLA_FLOW_TOKEN", "abc")
    with pytest.raises(ConfigError, match="has 3 characters"):
        serve.main(["--policy", str(folder / "policy")])


def test_the_encoders_weights_may_lie_elsewhere(folder: Path) -> None:
    with pytest.raises(AssetError, match="encoder_weights: no file nowhere"):
        serve.main(["--policy", str(folder / "policy"), "--encoder-weights", "nowhere"])
