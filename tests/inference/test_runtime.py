"""An exported policy does what the policy does: from the same observation, instruction and noise the same actions."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from pipeline.encode import own
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import Preprocess
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.errors import ConfigError, DataError
from pipeline.inference import manifest
from pipeline.inference.codec import MessageError
from pipeline.inference.export import export
from pipeline.inference.policy import Policy
from pipeline.inference.runtime import OnnxPolicy
from pipeline.inference.tokenizer import BytePairs
from pipeline.libero.suites import Task, tasks
from pipeline.policy.bundle import PolicyBundle, load, weights_digest
from pipeline.rollout.agent import PolicyAgent
from pipeline.server.request import Inputs, parse
from tests.encode import tiny
from tests.encode.test_preprocess import pictures
from tests.environments import environment
from tests.imports import ROOT
from tests.inference import exports, make

pytestmark = pytest.mark.slow  # for the export
TASK = tasks("libero_spatial", [0])[0]
NEEDED = ("numpy", "onnxruntime", "pillow")
# A script for an environment that has nothing but these and this project's source.
ALONE = """
import importlib.util, sys
import numpy as np
from pipeline.inference.runtime import OnnxPolicy
given = np.load(sys.argv[2])
policy = OnnxPolicy.load(sys.argv[1])
actions = policy.act({n: given[n] for n in given.files if n != "noise"}, "pick up the teapot", noise=given["noise"])
assert not any(map(importlib.util.find_spec, ("torch", "open_clip", "zarr", "jaxtyping")))
np.save(sys.argv[3], actions)
"""


def told(instruction: str) -> Task:
    return replace(TASK, language=instruction)


def agent_of(bundle: PolicyBundle, clip: ClipEncoder, n_action_steps: int | None = None) -> PolicyAgent:
    return PolicyAgent(bundle, clip, exports.SIM, n_action_steps=n_action_steps)


def noise(bundle: PolicyBundle, generator: torch.Generator) -> np.ndarray:
    return torch.randn(1, bundle.spec.architecture.horizon, 7, generator=generator)[0].numpy()


@pytest.mark.parametrize("instruction", [TASK.language, "open the drawer of the cabinet"])
def test_it_acts_as_the_agent_does(exported: Path, clip: ClipEncoder, instruction: str) -> None:
    bundle = load(exported / "policy")
    agent, policy = agent_of(bundle, clip), OnnxPolicy.load(exported / "onnx", threads=1)
    agent.reset(told(instruction), 5)
    generator = torch.Generator().manual_seed(5)
    for seed in range(3):
        obs = exports.observation(seed)
        actions = policy.act(exports.named(obs), instruction, noise=noise(bundle, generator))
        assert actions.dtype == np.float32
        np.testing.assert_allclose(actions, agent.act(obs), rtol=0, atol=1e-4)


def test_a_history_of_patch_tokens_of_a_tuned_tower(tmp_path: Path, clip: ClipEncoder) -> None:
    ours = exports.encoder(exports.GRID)
    changes = {"n_obs_steps": 2, "n_action_steps": 2, "proprio": ("gripper",), "head": "l1"}
    bundle = exports.policy(exports.encoder(exports.GRID), tmp_path / "policy", exports.GRID, tune=True, **changes)
    export(bundle, ours, [TASK.language], tmp_path / "onnx")
    assert bundle.tower is not None
    theirs = exports.encoder(exports.GRID)
    theirs.replace_tower(bundle.tower)
    for steps in (None, 1):
        agent = agent_of(bundle, theirs, steps)
        policy = OnnxPolicy.load(tmp_path / "onnx", n_action_steps=steps)
        for _ in range(2):  # the second episode begins as the first one did
            agent.reset(TASK, 0)
            policy.reset(0)
            for seed in range(4):
                obs = exports.observation(seed)
                policy.sample(exports.named(exports.observation(99)), TASK.language, 2)  # is not remembered
                np.testing.assert_allclose(policy.act(exports.named(obs), TASK.language), agent.act(obs), atol=1e-4)
    with pytest.raises(ConfigError, match=r"n_action_steps is 5, but the policy gives chunks of 4"):
        OnnxPolicy.load(tmp_path / "onnx", n_action_steps=5)


def test_a_batch_is_answered_as_the_policy_does(exported: Path) -> None:
    torch_side, policy = Policy.load(exported / "policy"), OnnxPolicy.load(exported / "onnx")
    rows = [exports.named(exports.observation(seed, 90)) for seed in range(3)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch |= {camera: batch[camera][:, 7:70] for camera in exports.CAMERAS}  # not square
    drawn, texts = torch_side.noise([1, 2, 3]), [TASK.language, "open the drawer", TASK.language]
    np.testing.assert_allclose(
        policy.act(batch, texts, noise=drawn), torch_side.infer(batch, texts, drawn), rtol=0, atol=1e-4
    )
    described = policy.describe()
    assert described.pop("weights_sha256") and described.pop("steps") == 3
    assert described == torch_side.describe()


def test_it_runs_without_torch(exported: Path, clip: ClipEncoder, tmp_path: Path) -> None:
    bundle, obs = load(exported / "policy"), exports.observation(3)
    given = noise(bundle, torch.Generator().manual_seed(8))
    np.savez(tmp_path / "given.npz", noise=given, **exports.named(obs))
    python = environment(tmp_path / "env", *(f"{name}=={version(name)}" for name in NEEDED))
    command = [python, "-c", ALONE, exported / "onnx", tmp_path / "given.npz", tmp_path / "actions.npy"]
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    agent = agent_of(bundle, clip)
    agent.reset(told("pick up the teapot"), 8)
    np.testing.assert_allclose(np.load(tmp_path / "actions.npy"), agent.act(obs), rtol=0, atol=1e-4)


def test_batches_samples_and_seeds(exported: Path) -> None:
    policy = OnnxPolicy.load(exported / "onnx")
    rows = [exports.named(exports.observation(seed)) for seed in range(3)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    drawn = np.random.default_rng(0).normal(size=(3, 4, 7)).astype(np.float32)
    texts = [TASK.language, "open the drawer", TASK.language]
    together = policy.act(batch, texts, noise=drawn)
    with pytest.raises(DataError, match=r"a batch of 1 observations after one of 3: call reset\(\)"):
        policy.act(rows[0], TASK.language)
    policy.reset()
    for row, text, each, expected in zip(rows, texts, drawn, together, strict=True):
        np.testing.assert_allclose(policy.act(row, text, noise=each), expected, rtol=0, atol=1e-4)
    policy.reset(3)
    first = policy.act(rows[0], TASK.language)
    assert np.abs(policy.act(rows[0], TASK.language) - first).max() > 1e-3, "each call draws its own noise"
    policy.reset(3)
    np.testing.assert_array_equal(policy.act(rows[0], TASK.language), first)
    many = policy.sample(rows[0], TASK.language, 3, noise=drawn)
    np.testing.assert_allclose(many[1], policy.act(rows[0], TASK.language, noise=drawn[1]), rtol=0, atol=1e-5)
    assert policy.sample(rows[0], TASK.language, 5).shape == (5, 4, 7)
    policy.reset(3)
    samples = policy.sample(rows[0], TASK.language, 2, seed=3)
    np.testing.assert_allclose(samples[0], first, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(policy.act(rows[0], TASK.language), first, "sampling drew no noise of the episode")
    policy.reset()
    with pytest.raises(DataError, match="2 instructions for 3 observations"):
        policy.act(batch, texts[:2])
    with pytest.raises(DataError, match=r"noise has shape \(1, 3, 7\), not \(1, 4, 7\)"):
        policy.act(rows[0], TASK.language, noise=drawn[0, :3])


def test_its_noise_is_standard_normal(exported: Path) -> None:
    policy = OnnxPolicy.load(exported / "onnx")
    drawn = policy.noise(range(2000))
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02 and abs((drawn**4).mean() - 3) < 0.2


@pytest.mark.parametrize("side", [84, 128, 224, 256, 500])
def test_frames_are_resized_as_in_training(exported: Path, side: int) -> None:
    policy = OnnxPolicy.load(exported / "onnx")
    for size in (32, 224):
        policy._size = size
        frames = pictures(side)
        ours = policy.pixels(frames)
        theirs = Preprocess(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(torch.from_numpy(frames)).numpy() * 255
        differences = np.abs(ours.transpose(0, 3, 1, 2) - np.rint(theirs))
        assert (differences > 1).mean() < 1e-5 and differences.max() <= 2 and differences.mean() < 0.2


def test_frames_that_are_not_square_are_cropped_at_the_centre(exported: Path) -> None:
    policy = OnnxPolicy.load(exported / "onnx")
    frame = exports.observation(0, 64).images["agentview"][None]
    wide = np.pad(frame, ((0, 0), (0, 0), (5, 6), (0, 0)))
    np.testing.assert_array_equal(policy.pixels(wide), policy.pixels(frame))


def test_wrong_requests_are_told_as_the_policy_does(exported: Path) -> None:
    sides = Policy.load(exported / "policy", "cpu"), OnnxPolicy.load(exported / "onnx")
    right, instruction = exports.named(exports.observation()), TASK.language
    wrong = {**right, "agentview": right["agentview"] / 255, "ee_pose": np.full(7, np.nan)}
    wrong["joint_position"] = wrong.pop("joint_pos")
    misnamed = {("front" if name == "agentview" else name): x for name, x in right.items()}
    pictured = {**right, "gripper": right["agentview"]}
    for given, text, said in (
        (wrong, instruction, "'agentview' is float64, not uint8: multiply"),
        (wrong, instruction, "'joint_pos' is missing among 'agentview', 'ee_pose', 'eye_in_hand', 'gripper', 'joint_p"),
        (wrong, instruction, "'ee_pose' holds nan"),
        (wrong, instruction, "This policy takes agentview: uint8 (H, W, 3), RGB, 0 to 255; eye_in_hand: "),
        (misnamed, instruction, "'agentview' is missing among 'ee_pose', 'eye_in_hand', 'front'"),
        (pictured, instruction, "'gripper' has shape (64, 64, 3), not (2,)"),
        (right, "word " * 100, "reads texts of 75 tokens, and this one has 100"),
        (right, "a" * 1001, "an instruction has 1001 characters; at most 1000"),
    ):
        told = []
        for policy in sides:
            with pytest.raises(DataError) as raised:
                policy.act(given, text)
            told.append(str(raised.value))
        assert told[0] == told[1] and said in told[0]
    extra = {**right, "wrist": right["agentview"]}
    drawn = np.zeros((4, 7), np.float32)
    for policy in sides:
        policy.reset()
        plain = policy.act(right, instruction, noise=drawn)
        np.testing.assert_array_equal(policy.act(extra, instruction, noise=drawn), plain, "what it does not take")


def test_instructions_that_were_asked_for_are_not_all_kept(exported: Path) -> None:
    policy, seen = OnnxPolicy.load(exported / "onnx"), exports.named(exports.observation())
    assert policy._text.cache_info().maxsize == 1024
    policy.act(seen, "push the plate")
    assert "push the plate" not in policy._known


def test_wrong_observations_are_told_in_full(exported: Path) -> None:
    policy, right = OnnxPolicy.load(exported / "onnx"), exports.named(exports.observation())
    with pytest.raises(DataError, match=r"quaternion .* of norm 2, not 1"):
        policy.act({**right, "ee_pose": right["ee_pose"] * [1, 1, 1, 2, 2, 2, 2]}, TASK.language)
    with pytest.raises(DataError, match=r"different batches: .*gripper \(3,\)"):
        policy.act({**right, "gripper": np.zeros((3, 2))}, TASK.language)
    drawn = np.zeros((4, 7), np.float32)
    turned = {**right, "ee_pose": right["ee_pose"] * [1, 1, 1, -1, -1, -1, -1]}
    before = policy.act(right, TASK.language, noise=drawn)
    np.testing.assert_array_equal(policy.act(turned, TASK.language, noise=drawn), before, "-q is the rotation q")
    with pytest.raises(ConfigError, match="device 'cuda'"):
        OnnxPolicy.load(exported / "onnx", "cuda")


def test_without_a_tokenizer_the_known_instructions_are_listed(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "onnx", tmp_path / "onnx")
    tree = manifest.read(tmp_path / "onnx")
    for name in ("sha256", "format", "version"):
        del tree[name]
    manifest.write(tmp_path / "onnx", {**tree, "tokenizer": None})
    policy, obs = OnnxPolicy.load(tmp_path / "onnx"), exports.named(exports.observation())
    assert policy.act(obs, TASK.language).shape == (4, 7)
    with pytest.raises(DataError, match=rf"'fly' is not one of .*Known: '{TASK.language}'.*--instruction 'fly'"):
        policy.act(obs, "fly")


def test_tokens_are_open_clips(exported: Path, clip: ClipEncoder) -> None:
    merges = (exported / "onnx" / manifest.MERGES).read_text().splitlines()
    theirs, rng = open_clip.get_tokenizer(tiny.MODEL), np.random.default_rng(0)
    printable = np.array([chr(i) for i in range(32, 127)])
    texts = ["".join(rng.choice(printable, rng.integers(0, 60))) for _ in range(300)]
    texts += ["", " It's\t100 &amp; don't!!", "aaaaaa bbbb", "x" * 500, "word " * 100, "<end_of_text> a"]
    texts += [task.language for task in tasks("libero_90")]
    ours = BytePairs(merges, 77)
    np.testing.assert_array_equal(ours(texts), theirs(texts).numpy())
    with pytest.raises(DataError, match="'schüssel' has 'ü', which is not ASCII"):
        ours(["Schüssel"])


def test_a_graph_of_another_bundle_or_a_damaged_one_is_refused(
    exported: Path, clip: ClipEncoder, tmp_path: Path
) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(exported / "onnx", folder)
    mine = manifest.read(folder)["policy"]["weights_sha256"]
    other = exports.policy(clip, tmp_path / "other", head="l1")
    export(replace(other, digest="f" * 64), clip, [], tmp_path / "theirs")
    shutil.copy(tmp_path / "theirs" / "policy.onnx", folder)
    with pytest.raises(DataError, match=rf"policy\.onnx: is of the policy with weights {'f' * 64}; .* weights {mine}"):
        OnnxPolicy.load(folder)
    content = bytearray((exported / "onnx" / "policy.onnx").read_bytes())
    for damaged in (content[: len(content) // 2], content[:-5000] + bytes([content[-5000] ^ 1]) + content[-4999:]):
        (folder / "policy.onnx").write_bytes(damaged)
        with pytest.raises(DataError, match=r"policy\.onnx: has changed .*SHA-256 \w{64}; export\.json names \w{64}"):
            OnnxPolicy.load(folder)
    (folder / "policy.onnx").unlink()
    with pytest.raises(DataError, match=r"policy\.onnx: not found"):
        OnnxPolicy.load(folder)
    (folder / "policy.onnx").write_bytes(content)
    tower = (folder / "text.onnx").read_bytes()
    (folder / "text.onnx").write_bytes(tower[:-1])
    with pytest.raises(DataError, match=r"text\.onnx: has changed"):
        OnnxPolicy.load(folder)  # and not when the first new instruction comes
    (folder / "text.onnx").write_bytes(tower)
    OnnxPolicy.load(folder)
    text = (folder / "export.json").read_text()
    (folder / "export.json").write_text(text.replace('"n_action_steps": 2', '"n_action_steps": 1'))
    with pytest.raises(DataError, match=r"export\.json: has changed since it was written"):
        OnnxPolicy.load(folder)
    (folder / "export.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError, match="not a vla-flow-onnx of version 2"):
        OnnxPolicy.load(folder)


def test_depth_is_taken_in_millimetres_as_the_policy_does(clip: ClipEncoder, tmp_path: Path) -> None:
    bundle = exports.policy(clip, tmp_path / "policy", cameras=("agentview", "agentview_depth"), head="l1")
    export(bundle, clip, [], tmp_path / "onnx")
    torch_side, policy = Policy(bundle, clip), OnnxPolicy.load(tmp_path / "onnx")
    seen = exports.named(exports.observation())
    found = []
    for millimetres in (300, 1500):
        given = {**seen, "agentview_depth": np.full((40, 50, 1), millimetres, np.uint16)}
        found.append(policy.act(given, TASK.language))
        np.testing.assert_allclose(found[-1], torch_side.act(given, TASK.language), rtol=0, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-4
    for side in (torch_side, policy):
        with pytest.raises(DataError, match="'agentview_depth' is uint8, not uint16"):
            side.act({**seen, "agentview_depth": seen["agentview"]}, TASK.language)
    inputs = Inputs.of(policy.describe())
    request = {**given, "prompt": TASK.language}
    assert parse(request, inputs).observation["agentview_depth"].dtype == np.uint16, "the server takes the same"
    with pytest.raises(MessageError, match="'agentview_depth' is uint8"):
        parse(request | {"agentview_depth": seen["agentview"]}, inputs)


def test_the_tower_in_8_bits_sees_alike(exported: Path) -> None:
    policies = [OnnxPolicy.load(exported / "onnx", int8=int8) for int8 in (False, True)]
    obs, drawn = exports.named(exports.observation()), np.zeros((4, 7), np.float32)
    fine, coarse = (policy.act(obs, TASK.language, noise=drawn) for policy in policies)
    assert 0 < np.abs(fine - coarse).max() < 0.1
    assert policies[0].describe()["weights_sha256"]["policy"] == weights_digest(exported / "policy")


def test_the_projects_own_clip_goes_by_its_name(tmp_path: Path) -> None:
    """A bundle needs no file for it; its vocabulary is in the export."""
    path = make.bundle(tmp_path / "policy", EncoderParams(own.MODEL, own.TAG, 0, "fp32"), GridParams(8, -1))
    policy = Policy.load(path, "cpu")
    export(load(path), policy.encoder, [], tmp_path / "onnx", None)
    seen, noise = make.observation(size=(128, 128)), policy.noise([3])[0]
    for instruction in (make.BOWL, "put the ramekin next to the plate"):
        actions = OnnxPolicy(tmp_path / "onnx").act(seen, instruction, noise)
        np.testing.assert_allclose(actions, policy.act(seen, instruction, noise), rtol=0, atol=2e-3)
