"""docs/own_data.md, command by command: from another robot's files to a policy."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache import Store, open_store
from pipeline.config import load
from pipeline.config.__main__ import main as compose
from pipeline.data.own import DataSet
from pipeline.errors import ConfigError, DataError
from pipeline.inference.policy import Policy
from pipeline.inference.recordings import Recording
from pipeline.inference.runtime import OnnxPolicy
from pipeline.libero.settings import Keys
from pipeline.policy import bundle
from pipeline.rollout.agent import check_settings
from stages import act, demos, embed, eval_libero, export_onnx, train_flow
from tests.data import make
from tests.encode import tiny
from tests.imports import ROOT

PAGE = (ROOT / "docs/own_data.md").read_text()
COMMANDS, EXPORT = (block.splitlines() for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S))
(SNIPPET,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
MAINS = {
    "python -m pipeline.config": compose,
    "python -m stages.demos": demos.main,
    "python -m stages.embed": embed.main,
    "accelerate launch -m stages.train_flow": train_flow.main,
}
SMALL = [f"embed.encoder.model={tiny.MODEL}", "embed.encoder.pretrained=seeded", "embed.encoder.precision=fp32"]
SMALL += [
    "compute=serial",
    "embed.shard_rows=16",
    "embed.chunk_rows=16",
    "policy.condition_dim=16",
    "policy.head_width=32",
]
SMALL += ["policy.horizon=4", "policy.n_action_steps=2", "train_flow.epochs=3", "train_flow.batch_size=16"]
TAKES = tuple(make.Take(i, 12 + i, make.TASKS[i % 2]) for i in range(6))


def run(line: str, *more: str) -> None:
    """Do what a command does, in this process."""
    command = next(command for command in MAINS if line.startswith(command))
    MAINS[command]([*line.removeprefix(command).split(), *more])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with nothing but configs/, and beside it a data set as the page's example has it."""
    tiny.register(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "checkout/configs")
    make.write_v3(tmp_path / "my_robot", TAKES)
    monkeypatch.chdir(tmp_path / "checkout")
    return tmp_path


def made(*overrides: str, line: str = COMMANDS[0]) -> None:
    run(line, *SMALL, *overrides)


def test_the_page_goes_from_files_to_a_policy(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {line.split(" --")[0].split(" compose")[0] for line in COMMANDS} == {*MAINS}
    for line in COMMANDS:
        run(line, *(SMALL if "compose" in line else []))
    told = capsys.readouterr().out
    assert "  0  pick up the cube: 3 demonstrations, 42 frames" in told
    assert "own (own): 6 demonstrations, 87 frames" in told
    index = json.loads(Path("data/demos/own/index.json").read_text())
    assert index["own"]["widths"] == {"joints": 6, "action": 6} and index["quarantine"] == []
    store = open_store("data/embeddings/own.zarr")
    assert store.fields == ("image/front", "lowdim/joints", "lowdim/action")
    assert store.texts.instructions == list(make.TASKS)
    of_task = [TAKES[i] for i in (0, 1, 2, 3, 4, 5)]
    start = 0
    for episode, take in enumerate(of_task):
        assert store.episodes.source[episode].endswith(f"episode_{take.seed:06d}")
        for name in ("joints", "action"):
            rows = store.read(f"lowdim/{name}")[start : start + take.length]
            np.testing.assert_array_equal(rows, take.arrays[name])
        start += take.length
    names: dict[str, Any] = {}
    exec(SNIPPET, names)
    told = names["policy"].describe()
    assert repr(told) in capsys.readouterr().out
    assert told["inputs"]["joints"]["shape"] == [6] and told["inputs"]["joints"]["key"] == make.STATE
    assert told["control_hz"] == make.FPS and names["actions"].shape == (4, 6)
    acts_within_what_it_learnt()
    sees_what_the_store_has(names["policy"], store)
    shows_its_actions_beside_the_true_ones(capsys)
    is_exported(names["policy"], names["shown"])
    embed.main(["--verify"])
    assert "equal bit for bit" in capsys.readouterr().out
    embed.main([])
    assert "up to date" in capsys.readouterr().out


def acts_within_what_it_learnt() -> None:
    policy = bundle.load("runs/flow/policy")
    network, arch = policy.network, policy.spec.architecture
    actions = np.concatenate([take.arrays["action"] for take in TAKES])
    torch.testing.assert_close(network.limits[0], torch.from_numpy(actions.min(0)))
    torch.testing.assert_close(network.limits[1], torch.from_numpy(actions.max(0)))
    assert float(network.normaliser.action.std.min()) > 20, "in the robot's units"
    images = {"front": torch.randn(3, arch.image_dim)}
    chunk = network.act(images, torch.randn(3, arch.text_dim), {"joints": torch.randn(3, 6)}, 50 * torch.randn(3, 4, 6))
    assert chunk.shape == (3, 4, 6) and float(chunk.abs().max()) > 20
    assert bool((chunk >= network.limits[0]).all() and (chunk <= network.limits[1]).all())
    assert policy.spec.data["sim"] is None and policy.spec.data["own"]["fps"] == make.FPS
    assert policy.spec.data["own"]["obs_shift"] == 0, "as it was embedded"
    report = json.loads(Path("runs/flow/train.json").read_text())
    assert list(report["train_action_mse_of"]) == ["0", "1", "2", "3", "4", "5"]
    assert report["recipe"]["demonstrations"]["source"] == "own"


def sees_what_the_store_has(policy: Policy, store: Store) -> None:
    """Of the files' own frames, which are not square, it makes the features that it learnt from."""
    data = DataSet("own", Path("../my_robot"), Keys(**policy.spec.data["own"]["keys"]))
    frames = data.episodes[0].frames(make.CAMERA, 0, 12)
    assert frames.shape == (12, make.HEIGHT, make.WIDTH, 3)
    seen = policy.encode({"front": frames, "joints": TAKES[0].arrays["joints"]})
    front = seen["front"].cpu().numpy()
    np.testing.assert_allclose(front, store.read("image/front")[:12, 0], rtol=0, atol=5e-3)
    assert np.abs(front).max() > 0.1


def shows_its_actions_beside_the_true_ones(capsys: pytest.CaptureFixture[str]) -> None:
    act.main(["--demo", "../my_robot", "--name", "episode_000001", "--step", "3", "--plot", "chunk.html"])
    said = capsys.readouterr().out
    assert f"“{make.TASKS[1]}”, after step 3: 4 actions" in said and "over 4 steps and 1 samples" in said
    chunk = np.array([[float(x) for x in line.split()[1:]] for line in said.splitlines()[2:6]])
    error = np.abs(chunk - TAKES[1].arrays["action"][3:7]).mean()
    (told,) = re.findall(r"mean (\d+\.\d+), over", said)
    assert float(told) == pytest.approx(error, abs=1e-3), "against the same rows of the data"
    assert Path("chunk.html").read_text().count('class="curve b"') == 6
    with pytest.raises(DataError, match=r"my_robot: has no 'episode_9'\. Did you mean 'episode_00000\d'"):
        act.main(["--demo", "../my_robot", "--name", "episode_9"])
    with pytest.raises(DataError, match="nowhere: is not there; it must be a data set like the one"):
        act.main(["--demo", "../nowhere"])
    Image.fromarray(TAKES[0].frames[0]).save("front.png")
    Path("state.json").write_text(json.dumps({"joints": TAKES[0].arrays["joints"][0].tolist()}))
    act.main(["--image", "front=front.png", "--state", "state.json", "--instruction", make.TASKS[0]])
    assert "4 actions" in capsys.readouterr().out


def is_exported(policy: Policy, shown: Recording) -> None:
    export_onnx.main([])
    exported = OnnxPolicy.load("runs/flow/onnx")
    for step in (0, 7):
        noise = policy.noise([step])[0]
        policy.reset(step)
        wanted = policy.act(shown.at(step), make.TASKS[0])
        found = exported.act(shown.at(step), make.TASKS[0], noise=noise)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-2)  # of some 40 degrees
    assert "# (4, 6): carry out" in Path("runs/flow/policy/README.md").read_text()


def test_it_is_not_rolled_out_in_liberos_simulator(project: Path) -> None:
    for line in (COMMANDS[0], *COMMANDS[2:]):
        run(line, *(SMALL if "compose" in line else []))
    params, spec = load(), bundle.load_spec("runs/flow/policy")
    with pytest.raises(DataError, match=r"trained on data of your own \(own\), which LIBERO's simulator cannot show"):
        check_settings(spec, params.sim, params.embed.encoder)
    with pytest.raises((ConfigError, DataError), match="own"):
        eval_libero.main([])


@pytest.mark.parametrize("head", ["diffusion", "tokens", "l1", "cvae"])
def test_every_head_learns_it(head: str, project: Path) -> None:
    bounded = head in ("diffusion", "tokens")
    made(f"policy.head={head}", f"policy.standardise_actions={'false' if bounded else 'true'}")
    for line in COMMANDS[2:]:
        run(line)
    network = bundle.load("runs/flow/policy").network
    if bounded:
        actions = torch.from_numpy(np.concatenate([take.arrays["action"] for take in TAKES]))
        scaled = network.normaliser.action(actions)
        torch.testing.assert_close(scaled.min(0).values, -torch.ones(6))
        torch.testing.assert_close(scaled.max(0).values, torch.ones(6))


def test_a_state_of_another_name_a_task_alone_and_patch_tokens(project: Path) -> None:
    grip = "+demos.keys.state.grip=observation.grip"
    patches = ("embed.grid={size:2,layer:-1}", "policy.features=grid", "policy.n_obs_steps=2")
    made(grip, "policy.proprio=[grip,joints]", "data.tasks.own=[1]", *patches)
    for line in COMMANDS[2:]:
        run(line)
    spec = bundle.load("runs/flow/policy").spec
    assert spec.architecture.proprio_dims == {"grip": 1, "joints": 6} and spec.architecture.patches == 4
    assert spec.data["tasks"] == {"own": [1]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.cameras=[agentview]"], "policy.cameras has 'agentview'; it can have front"),
        (["embed.cameras=[front,wrist]"], "embed.cameras has 'wrist'; it can have front"),
        (["policy.proprio=[joint_pos]"], "policy.proprio has 'joint_pos'; it can have joints"),
        (["demos.path=null"], "demos.source is 'own' but demos.path is null"),
        (["demos.keys=null"], "demos.source is 'own', but demos.keys is null"),
        (["~demos.keys.cameras.front"], "demos.keys.cameras is empty; name at least 1"),
        (["train_flow.keyframe_weight=0.5"], "keyframe_weight takes LIBERO's hand and gripper.*set it to 0"),
        (["train_flow.action=expert_action"], "which only scripted demonstrations have; use 'action'"),
        (["data=libero_spatial"], "demos.source own takes one name of your own choice"),
        (["data.tasks.own=[-1]"], "data.tasks.own has -1; ids go from 0"),
        (["+demos.keys.state.action=x"], "demos.keys.state has 'action'"),
        (["+demos.keys.cameras.front_depth=x"], "demos.keys.cameras has 'front_depth'"),
        (["+demos.keys.state.noise=x"], "demos.keys.state has 'noise'; use letters.* none of .*noise"),
        (["+demos.keys.state.front=x"], "has 'front' among cameras and among state"),
        (["+demos.keys.state.type=x"], "demos.keys.state has 'type', which parts of a network cannot be called"),
        (["+demos.keys.cameras.forward=x"], "demos.keys.cameras has 'forward'.* Use forward_0, say"),
        (["+demos.keys.cameras.training=x", "+demos.keys.state.keys=x"], "has 'training'.*\n.*has 'keys'"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: list[str], message: str, project: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        made(*overrides)


def test_what_is_missing_is_named_and_an_older_result_stays(project: Path) -> None:
    made()
    demos.main([])
    before = Path("data/demos/own/index.json").read_text()
    made("demos.keys.action=actoin")
    with pytest.raises(DataError, match=r"my_robot/meta/info.json: has no 'actoin', which demos.keys.action names"):
        demos.main([])
    made("demos.path=../nowhere")
    with pytest.raises(DataError, match=r"nowhere is not there; it must name the directory of a data set.*own_data.md"):
        demos.main([])
    made("data.tasks.own=[0,7]")
    with pytest.raises(DataError, match=r"data.tasks.own has \[7\]; the data set has: 0 pick up the cube; 1 push"):
        demos.main([])
    assert Path("data/demos/own/index.json").read_text() == before
    made("data.tasks.own=[1]")
    demos.main([])
    embed.main([])
    assert open_store("data/embeddings/own.zarr").texts.instructions == [make.TASKS[1]]
    assert all(path.is_symlink() for path in Path("data/demos/own/data").rglob("*") if path.is_file())
    shutil.rmtree(project / "my_robot")
    with pytest.raises(DataError):
        embed.main([])


def test_an_episode_that_breaks_while_it_is_embedded_is_left_out(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made()
    demos.main([])
    from pipeline.embed import worker

    whole = worker.read

    def read(demo: Any, cameras: Any, start: int, stop: int) -> dict[str, Any]:
        if demo.number == 2:
            raise DataError(f"{demo}: is damaged")
        return whole(demo, cameras, start, stop)

    monkeypatch.setattr(worker, "read", read)
    embed.main([])
    sources = open_store("data/embeddings/own.zarr").episodes.source
    assert [source[-1] for source in sources] == ["0", "1", "3", "4", "5"]
