"""A policy alone: what encoder and network do by hand, on anybody's observation; and clear words for a wrong one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.encode.settings import GridParams
from pipeline.encode.weights import load_model
from pipeline.errors import AssetError, ConfigError, DataError
from pipeline.inference.describe import describe
from pipeline.inference.observation import centre_crop, checked
from pipeline.inference.policy import Policy
from pipeline.policy import bundle
from pipeline.seal import sealed
from tests.encode import tiny
from tests.inference import exports
from tests.inference.make import BOWL, CAMERAS, DRAWER, SIGNALS, observation, stacked
from tests.inference.make import bundle as make_bundle

F16 = 2e-3  # of actions: features are of half precision, and a batch is not summed as its rows are
Observed = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    tiny.register(folder)
    return make_bundle(folder / "policy")


@pytest.fixture
def policy(path: Path) -> Policy:
    return Policy.load(path, "cpu")


@pytest.fixture(scope="module")
def remembering(path: Path) -> Callable[..., Policy]:
    """Return a policy of patch tokens that sees two observations, 2 control steps apart."""
    made = make_bundle(path.parent / "remembering", grid=GridParams(1, -1), n_obs_steps=2)
    return lambda **settings: Policy.load(made, "cpu", **settings)


def by_hand(policy: Policy, observations: list[Observed], instruction: str, noise: np.ndarray) -> np.ndarray:
    """Return what the network alone makes of square observations, oldest first, as one row."""
    kind = "grid" if policy.spec.grid else "image"

    def features(camera: str) -> torch.Tensor:
        frames = np.stack([seen[camera] for seen in observations])
        return torch.from_numpy(policy.encoder.forward(policy.encoder.prepare(frames))[kind]).float()

    images = {camera: features(camera) for camera in CAMERAS}
    signals = {name: torch.from_numpy(np.stack([seen[name] for seen in observations])) for name in SIGNALS}
    if policy.n_obs_steps > 1:
        images, signals = ({name: x[None] for name, x in part.items()} for part in (images, signals))
    text = torch.from_numpy(policy.encoder.text([instruction]))
    return policy.network.act(images, text, signals, torch.from_numpy(noise)[None])[0].numpy()


def drawn(policy: Policy, seed: int, calls: int) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, policy.horizon, 7, generator=generator)[0].numpy() for _ in range(calls)]


def test_it_does_what_encoder_and_network_do_by_hand(policy: Policy) -> None:
    for instruction in (BOWL, "push the plate"):  # one that the bundle knows, and one that it does not
        policy.reset(12345)
        for i, noise in enumerate(drawn(policy, 12345, 2)):
            got = policy.act(observation(i), instruction)
            assert got.shape == (4, 7) and got.dtype == np.float32 and np.abs(got).max() <= 1
            np.testing.assert_allclose(got, by_hand(policy, [observation(i)], instruction, noise), atol=F16)


def test_every_input_counts(policy: Policy) -> None:
    def act(changed: Observed, instruction: str = BOWL) -> np.ndarray:
        policy.reset(3)
        return policy.act(changed, instruction)

    seen, other = observation(0), observation(1)
    plain = act(seen)
    assert np.array_equal(plain, act(seen | {"label": np.zeros(3)})), "what it does not take is left alone"
    assert not np.allclose(plain, act(seen, DRAWER), atol=1e-6)
    for name in (*CAMERAS, "joint_pos", "ee_pose"):
        assert not np.allclose(plain, act(seen | {name: other[name]}), atol=1e-6), name
    assert not np.allclose(plain, act(seen | {"gripper": np.array([0.0, 0.0])}), atol=1e-6)


@pytest.mark.gpu
def test_on_a_gpu_it_acts_as_on_a_cpu(path: Path) -> None:
    """The first call is captured as a CUDA graph, those after it are replayed."""
    here, there = (Policy.load(path, device) for device in ("cpu", "cuda"))
    for call in range(3):
        wanted, found = (each.act(observation(call), BOWL) for each in (here, there))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0.01)
    assert there._graphed and all(there._graphed._graphs.values()), "nothing was captured"


def test_a_batch_is_its_rows(policy: Policy) -> None:
    seen, texts = [observation(i) for i in range(3)], [BOWL, DRAWER, "push the plate"]
    batch = policy.act(stacked(seen), texts)
    noises = drawn(policy, 0, 3)
    assert batch.shape == (3, 4, 7)
    for got, one, text, noise in zip(batch, seen, texts, noises, strict=True):
        np.testing.assert_allclose(got, by_hand(policy, [one], text, noise), atol=F16)
    np.testing.assert_allclose(policy.infer(stacked(seen), texts, np.stack(noises)), batch, atol=F16)
    with pytest.raises(DataError, match="2 instructions for 3 observations"):
        policy.act(stacked(seen), texts[:2])
    with pytest.raises(DataError, match=r"a batch of 2 observations after one of 3: call reset\(\)"):
        policy.act(stacked(seen[:2]), BOWL)


def test_a_history_is_of_this_episode(remembering: Callable[..., Policy]) -> None:
    seen = [observation(i) for i in range(4)]
    for steps, pairs in ((None, [[0, 0], [0, 1], [1, 2]]), (1, [[0, 0], [0, 1], [0, 2], [1, 3]])):
        policy = remembering(n_action_steps=steps)
        for _ in range(2):  # the second episode begins as the first one did
            policy.reset(5)
            for i, (rows, noise) in enumerate(zip(pairs, drawn(policy, 5, len(pairs)), strict=True)):
                expected = by_hand(policy, [seen[k] for k in rows], BOWL, noise)
                (one,) = policy.sample(seen[i], BOWL, 1) if i == 0 else [None]
                np.testing.assert_allclose(policy.act(seen[i], BOWL), expected, atol=5e-3)
                assert one is None or len(policy.sample(seen[i], BOWL, 2)) == 2, "which changes nothing"
    with pytest.raises(ConfigError, match="n_action_steps is 3, but the policy learnt from observations 2 steps apart"):
        remembering(n_action_steps=3)
    for steps in (-1, 0):
        with pytest.raises(ConfigError, match=f"n_action_steps is {steps}, but the policy gives chunks of"):
            remembering(n_action_steps=steps)
        with pytest.raises(ConfigError, match=f"{steps} sampling steps: a policy of head flow takes 1 or more"):
            remembering(steps=steps)


def test_infer_is_what_act_does_without_a_state(policy: Policy, remembering: Callable[..., Policy]) -> None:
    policy.reset(8)
    first = policy.act(observation(), BOWL)
    policy.act(observation(1), BOWL)
    for _ in range(2):
        np.testing.assert_array_equal(policy.infer(stacked([observation()]), BOWL, policy.noise([8]))[0], first)

    two = remembering()
    noise = two.noise([1, 2])
    rows = [[observation(0), observation(1)], [observation(2), observation(3)]]
    history = stacked([stacked([row[i] for row in rows]) for i in range(2)], axis=1)
    assert history["gripper"].shape == (2, 2, 2)
    for got, row, each in zip(two.infer(history, BOWL, noise), rows, noise, strict=True):
        np.testing.assert_allclose(got, by_hand(two, row, BOWL, each), atol=5e-3)
    begun = two.infer({name: x[:, :1] for name, x in history.items()}, BOWL, noise)
    for got, row, each in zip(begun, rows, noise, strict=True):
        np.testing.assert_allclose(got, by_hand(two, [row[0], row[0]], BOWL, each), atol=5e-3)
    with pytest.raises(DataError, match="3 observations at a time; the policy sees 2"):
        two.infer({name: np.concatenate([x, x[:, :1]], axis=1) for name, x in history.items()}, BOWL, noise)
    with pytest.raises(DataError, match=r"1 axes before those of one observation, \(2,\), where 2 can be"):
        two.infer({name: x[:, 0] for name, x in history.items()}, BOWL, noise)
    with pytest.raises(DataError, match=r"noise has shape \(1, 4, 7\), not \(2, 4, 7\)"):
        two.infer(history, BOWL, noise[:1])


def test_samples_are_of_one_observation_and_several_noises(policy: Policy) -> None:
    policy.reset(6)
    policy.act(observation(), BOWL)
    chunks = policy.sample(observation(), BOWL, 3, seed=6)
    assert chunks.shape == (3, 4, 7)
    for got, noise in zip(chunks, drawn(policy, 6, 3), strict=True):
        np.testing.assert_allclose(got, by_hand(policy, [observation()], BOWL, noise), atol=F16)
    second = policy.act(observation(), BOWL)
    np.testing.assert_allclose(second, chunks[1], atol=F16, err_msg="sampling drew no noise of the episode")
    with pytest.raises(DataError, match="0 samples"):
        policy.sample(observation(), BOWL, 0)
    with pytest.raises(DataError, match=r"1 axes before those of one observation, \(1,\), where 0 can be"):
        policy.sample(stacked([observation()]), BOWL, 2)


@pytest.mark.parametrize("size", [(24, 24), (480, 640), (31, 20), (1080, 1920)])
def test_images_of_any_size_are_cropped_at_the_centre(policy: Policy, size: tuple[int, int]) -> None:
    seen = observation(2, size)
    side = min(size)
    left, top = (size[1] - side) // 2, (size[0] - side) // 2

    def cropped(frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).crop((left, top, left + side, top + side)))

    square = seen | {camera: cropped(seen[camera]) for camera in CAMERAS}
    policy.reset()
    got = policy.act(seen, BOWL)
    policy.reset()
    np.testing.assert_array_equal(policy.act(square, BOWL), got)
    mixed = policy.act(seen | {"eye_in_hand": observation(2)["eye_in_hand"]}, BOWL)
    assert mixed.shape == (4, 7), "cameras of different sizes"


def test_the_centre_is_the_centre() -> None:
    frames = np.arange(5 * 8, dtype=np.uint8).reshape(1, 5, 8, 1).repeat(3, -1)
    assert centre_crop(frames)[0, :, :, 0].tolist() == frames[0, :, 1:6, 0].tolist()
    assert centre_crop(frames.swapaxes(1, 2)).shape == (1, 5, 5, 3)


WITHOUT = object()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agentview": WITHOUT, "image": 1}, r"'agentview' is missing among 'ee_pose', 'eye_in_hand', .*'image'"),
        (
            dict.fromkeys((*CAMERAS, *SIGNALS), WITHOUT),
            r"'agentview' is missing among none; .*'gripper' is missing",
        ),
        ({"agentview": np.zeros((24, 24, 3))}, r"'agentview' is float64, not uint8: multiply what is in \[0, 1\]"),
        ({"agentview": np.zeros((3, 24, 24), np.uint8)}, r"'agentview' has shape \(3, 24, 24\), not \(H, W, 3\)"),
        ({"agentview": np.zeros((0, 24, 3), np.uint8)}, r"'agentview' has shape \(0, 24, 3\), not"),
        ({"agentview": None}, "'agentview' is object, not uint8"),
        ({"joint_pos": np.full(7, np.nan)}, "'joint_pos' holds nan: every number must be finite"),
        ({"joint_pos": np.full(7, 1e300)}, "'joint_pos' holds inf: every number must be finite"),
        ({"joint_pos": np.zeros(6)}, r"'joint_pos' has shape \(6,\), not \(7,\)"),
        ({"joint_pos": "zero"}, "'joint_pos' is <U4, not float32"),
        ({"joint_pos": [[1.0], [2.0, 3.0]]}, "'joint_pos' setting an array element"),
        ({"gripper": np.zeros(2, bool)}, "'gripper' is bool, not float32"),
        ({"ee_pose": np.zeros(7)}, r"'ee_pose' has a quaternion \(its last four numbers\) of norm 0, not 1"),
        ({"gripper": np.zeros((2, 2))}, r"different batches: agentview \(\), .*gripper \(2,\)"),
    ],
)
def test_a_wrong_observation_is_told_what_is_wanted(policy: Policy, changes: dict[str, Any], said: str) -> None:
    given = {name: x for name, x in (observation() | changes).items() if x is not WITHOUT}
    with pytest.raises(DataError, match=said) as error:
        policy.act(given, BOWL)
    for name in (*CAMERAS, *SIGNALS):
        assert f"{name}: " in str(error.value).partition("This policy takes ")[2]
    assert "agentview: uint8 (H, W, 3), RGB" in str(error.value) and "joint_pos: float32 (7), rad" in str(error.value)
    assert policy.act(observation(), BOWL).shape == (4, 7), "and it goes on"


def test_all_that_is_wrong_is_told_at_once(policy: Policy) -> None:
    given = observation() | {"agentview": np.zeros((24, 24)), "gripper": np.array([np.inf, 0])}
    del given["joint_pos"]
    with pytest.raises(DataError, match=r"'agentview' is float64.*'joint_pos' is missing.*'gripper' holds inf"):
        policy.act(given, BOWL)
    with pytest.raises(DataError, match="a mapping of names to arrays, not list"):
        checked(policy.describe(), [1, 2])
    with pytest.raises(DataError, match="1001 characters; at most 1000"):
        policy.act(observation(), "a" * 1001)
    with pytest.raises(DataError, match="3 axes before"):
        checked(policy.describe(), {name: x[None, None, None] for name, x in observation().items()})


def test_a_quaternion_of_either_sign_is_the_same_rotation(policy: Policy) -> None:
    seen = observation()
    turned = seen["ee_pose"] * np.array([1, 1, 1, -1, -1, -1, -1], np.float32)
    found = checked(policy.describe(), seen | {"ee_pose": turned.astype(np.float64)})["ee_pose"]
    assert found.dtype == np.float32 and np.array_equal(found, seen["ee_pose"])


def test_arrays_that_may_not_be_written_to_are_taken(policy: Policy, recwarn: pytest.WarningsRecorder) -> None:
    """As those are that come out of a message."""
    seen = observation()
    for array in seen.values():
        array.setflags(write=False)
    assert policy.act(seen, BOWL).shape == (4, 7)
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_depth_is_taken_in_millimetres(path: Path) -> None:
    made = make_bundle(path.parent / "depth", cameras=("agentview", "agentview_depth"))
    policy = Policy.load(made, "cpu")
    assert policy.describe()["inputs"]["agentview_depth"]["unit"].startswith("mm")
    seen = observation() | {"agentview_depth": np.full((30, 40, 1), 500, np.uint16)}
    policy.reset()
    near = policy.act(seen, BOWL)
    policy.reset()
    assert not np.allclose(near, policy.act(seen | {"agentview_depth": np.full((30, 40, 1), 1500, np.uint16)}, BOWL))
    with pytest.raises(DataError, match=r"\(30, 40\), not \(H, W, 1\)"):
        policy.act(seen | {"agentview_depth": np.zeros((30, 40), np.uint16)}, BOWL)
    with pytest.raises(DataError, match="'agentview_depth' is uint8, not uint16"):
        policy.act(seen | {"agentview_depth": seen["agentview"]}, BOWL)


def test_it_describes_itself(policy: Policy) -> None:
    told = policy.describe()
    assert json.loads(json.dumps(told)) == told, "plain JSON values"
    assert set(told["inputs"]) == {*CAMERAS, *SIGNALS}
    for entry in (*told["inputs"].values(), told["outputs"]["actions"]):
        assert {"shape", "dtype", "unit", "frame", "sign"} <= set(entry)
    assert told["instruction"]["known"] == [BOWL, DRAWER]
    assert told["inputs"]["agentview"]["learnt_at"] == tiny.SIM.image_size
    assert told["outputs"]["actions"]["shape"] == [4, 7] and told["control_hz"] == 20
    assert told["history"] == {"n_obs_steps": 1, "control_steps_apart": 2}
    assert describe(policy.spec) == told


def test_the_encoder_that_it_is_given_stays_as_it_is(tmp_path: Path) -> None:
    """Of two policies with one encoder, each sees through a tower of its own."""
    tiny.register(tmp_path)
    clip = exports.encoder()
    tuned = exports.policy(clip, tmp_path / "tuned", tune=True)
    frames = observation()["agentview"][None]
    before = clip.images(frames)
    policy = Policy(tuned, clip)
    np.testing.assert_array_equal(clip.images(frames), before)
    assert not np.array_equal(policy.encoder.images(frames), before), "it sees through the tower of the bundle"
    assert clip.identity == policy.encoder.identity


def test_a_call_that_fails_leaves_the_episode_as_it_was(remembering: Callable[..., Policy]) -> None:
    policy = remembering()
    policy.reset(5)
    policy.act(observation(0), BOWL)
    with pytest.raises(DataError, match="Shorten it"):
        policy.act(observation(1), "word " * 100)
    again = policy.act(observation(2), BOWL)
    policy.reset(5)
    policy.act(observation(0), BOWL)
    np.testing.assert_array_equal(policy.act(observation(2), BOWL), again)


def test_texts_of_the_bundle_are_used_and_others_are_encoded(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[list[str]] = []
    text = policy.encoder.text
    monkeypatch.setattr(policy.encoder, "text", lambda texts: encoded.append(texts) or text(texts))
    for instruction in (BOWL, DRAWER, "push the plate", "push the plate"):
        policy.act(observation(), instruction)
    assert encoded == [["push the plate"]]


def test_the_encoder_is_made_from_the_bundle_alone(path: Path, tmp_path: Path) -> None:
    """Of a local file of weights it has the SHA-256 and the name; the file has to be given."""
    weights = tmp_path / "mine.safetensors"
    save_file(load_model(replace(tiny.PARAMS, seed=3)).state_dict(), weights)
    made = make_bundle(tmp_path / "policy", params=replace(tiny.PARAMS, pretrained=str(weights)))
    sha256 = bundle.load_spec(made).encoder["weights_sha256"]
    with pytest.raises(
        AssetError, match=rf"'mine\.safetensors' of weights with SHA-256 {sha256}.*encoder_weights=PATH"
    ):
        Policy.load(made, "cpu")
    with pytest.raises(AssetError, match="encoder_weights: no file nowhere"):
        Policy.load(made, "cpu", encoder_weights="nowhere")
    renamed = weights.rename(tmp_path / "other.safetensors")
    policy = Policy.load(made, "cpu", encoder_weights=renamed)
    assert policy.act(observation(), BOWL).shape == (4, 7)
    save_file(load_model(replace(tiny.PARAMS, seed=4)).state_dict(), renamed)
    with pytest.raises(DataError, match=rf"weights_sha256: '{sha256}' in the policy, '\w+' here.*encoder_weights=PATH"):
        Policy.load(made, "cpu", encoder_weights=renamed)


def test_a_bundle_of_before_encodes_its_instructions(path: Path, tmp_path: Path) -> None:
    """Version 7 held no text features."""
    read = bundle.load(path)
    bundle.save(tmp_path / "policy", read.network, replace(read.spec, instructions=()))
    file = tmp_path / "policy/policy.json"
    tree = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("sha256", "instructions")}
    file.write_text(sealed(tree | {"version": 7}))
    old, new = Policy.load(tmp_path / "policy", "cpu"), Policy.load(path, "cpu")
    np.testing.assert_array_equal(old.act(observation(), BOWL), new.act(observation(), BOWL))


def test_a_damaged_or_missing_bundle_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"policy\.json: not found"):
        Policy.load(tmp_path / "nowhere")
    broken = make_bundle(tmp_path / "policy")
    content = bytearray((broken / "text.safetensors").read_bytes())
    content[-1] ^= 1
    (broken / "text.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"text\.safetensors: has changed since it was written"):
        Policy.load(broken)


@pytest.mark.parametrize("head", ["flow", "tokens"])
def test_features_that_half_precision_cannot_hold_are_told(
    head: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(make_bundle(tmp_path / "policy", head=head), "cpu")
    huge = {"image": torch.full((2, policy.encoder.dim), torch.inf, dtype=torch.float16)}
    monkeypatch.setattr(policy.encoder, "features", lambda images: huge)
    with pytest.raises(DataError, match="gives features that are not finite in half precision; use another one"):
        policy.act(observation(0), BOWL)


def test_actions_that_are_not_finite_are_the_policys_fault(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "_chunks", lambda *given: np.full((1, 4, 7), np.nan, np.float32))
    with pytest.raises(RuntimeError, match="actions that are not finite: its training has diverged"):
        policy.act(observation(0), BOWL)
    with pytest.raises(RuntimeError, match="actions that are not finite"):
        policy.sample(observation(0), BOWL, 1)
