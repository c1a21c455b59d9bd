"""vla-evaluation-harness's own client and model server, in an environment of its own, get our policy's actions."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.inference.openpi import to_openpi
from pipeline.inference.policy import Policy
from pipeline.server.batching import Batching
from tests.encode import tiny
from tests.environments import environment
from tests.imports import ROOT
from tests.inference.make import BOWL, bundle, observation
from tests.server.serving import serving

STEPS = 5
CLIENT = """
import json, sys
import anyio
import numpy as np
from vla_eval.connection import Connection
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.serve import serve_async
from examples.vla_eval_server import VlaFlow

async def main():
    model = VlaFlow(sys.argv[1])
    given = np.load(sys.argv[2], allow_pickle=False)
    found = []
    seen = {"images": {name: given[name][0] for name in ("agentview", "wrist")}, "task_description": sys.argv[4]}
    try:
        model.predict({**seen, "states": given["states"][0] * np.nan}, SessionContext("one", "1"))
    except RuntimeError as error:
        print(error)
    model.predict({**seen, "states": given["states"][0]}, SessionContext("one", "2"))  # it has connected anew
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve_async, model, "127.0.0.1", 0)
        async with Connection(f"ws://127.0.0.1:{port}") as client:
            for episode in range(2):
                await client.start_episode({"task": {"name": "bowl"}})
                for i in range(len(given["states"])):
                    images = {name: given[name][i] for name in ("agentview", "wrist")}
                    seen = {"images": images, "states": given["states"][i], "task_description": sys.argv[4]}
                    found.append((await client.act(seen))["actions"])
                await client.end_episode({"success": True})
            print(json.dumps(client.server_info["observation_params"]))
        with anyio.fail_after(10):  # the server hears of an episode's end a little later, and keeps nothing of it
            while list(model._past) != ["one"]:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    np.save(sys.argv[3], np.array(found))

anyio.run(main)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("vla_eval") / "env", "vla-eval==0.8.0")


@pytest.mark.slow
@pytest.mark.parametrize("n_obs_steps", [1, 2])
def test_vla_eval_gets_the_policys_actions(n_obs_steps: int, python: Path, tmp_path: Path) -> None:
    tiny.register(tmp_path)
    made = {"proprio": ("ee_pose", "gripper"), "n_obs_steps": n_obs_steps, "head": "l2"}  # which needs no noise
    policy = Policy.load(bundle(tmp_path / "policy", **made), "cpu")
    moments = [observation(i, (224, 224)) for i in range(STEPS)]
    requests = [to_openpi({n: m[n] for n in ("agentview", "eye_in_hand")}, m, BOWL) for m in moments]
    np.savez(
        tmp_path / "given.npz",
        agentview=np.stack([r["observation/image"] for r in requests]),
        wrist=np.stack([r["observation/wrist_image"] for r in requests]),
        states=np.stack([r["observation/state"] for r in requests]),
    )
    with serving(policy, batching=Batching()) as (_, address):
        argv = [f"ws://{address}", str(tmp_path / "given.npz"), str(tmp_path / "found.npy"), BOWL]
        done = subprocess.run(
            [python, "-c", CLIENT, *argv],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 0, done.stderr
    refused, told = done.stdout.splitlines()
    assert refused == "'observation/state' holds nan in component 0; every number must be finite"
    assert json.loads(told) == {"send_wrist_image": True, "send_state": True}
    policy.reset(0)
    steps, expected = policy.n_action_steps, []
    for i in range(0, STEPS, steps):
        expected += list(policy.act(moments[i], BOWL)[:steps])
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found[:STEPS], expected[:STEPS], atol=2e-3)
    np.testing.assert_array_equal(found[STEPS:], found[:STEPS])  # an episode begins anew
