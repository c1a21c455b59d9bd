"""The encoder: its weights' origin, and that it computes what open_clip computes."""

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip import pretrained as registry
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from pipeline.encode import preprocess
from pipeline.encode.clip import ClipEncoder, default_batch_size, resolve_precision
from pipeline.encode.hub import REVISIONS
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.encode.weights import hub_source, load_model, weights_sha256
from pipeline.errors import AssetError, ConfigError
from tests.encode import tiny
from tests.encode.test_preprocess import pictures
from tests.hub import serving

SEEDED_SHA256 = "bc4a589095d4f5e741803f1e5097051043f2c7f6565d58b90eaf249fa9b74869"


@pytest.fixture(scope="module", autouse=True)
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny.register(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return ClipEncoder(tiny.PARAMS)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A local file with weights that no seed draws: single precision, as open_clip's own training writes them."""
    path = tmp_path / "weights.safetensors"
    state = {name: value * 1.37 for name, value in load_model(tiny.PARAMS).state_dict().items()}
    save_file(state, path)
    return path


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("gpu_resize", [False, True])
@pytest.mark.parametrize("side", [24, 128])
def test_features_are_open_clips(
    encoder: ClipEncoder, side: int, gpu_resize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu_resize:
        monkeypatch.setattr(preprocess, "_resize", preprocess._resize_float)
    frames = pictures(side)
    cfg = PreprocessCfg(**{k: v for k, v in encoder.model.visual.preprocess_cfg.items() if k != "mode"})
    apply = image_transform_v2(cfg, is_train=False)
    with torch.no_grad():
        theirs = load_model(tiny.PARAMS).encode_image(torch.stack([apply(Image.fromarray(f)) for f in frames]))
    ours = encoder.images(frames)
    assert (ours.dtype, ours.shape) == (np.float16, (3, encoder.dim))
    assert cosine(ours, theirs.numpy()).min() >= 0.999


def test_text_is_open_clips_and_independent_of_its_neighbours(encoder: ClipEncoder) -> None:
    texts = ["pick up the black bowl", "open the drawer", "push the plate to the front of the stove"]
    with torch.no_grad():
        theirs = load_model(tiny.PARAMS).encode_text(open_clip.get_tokenizer(tiny.MODEL)(texts)).numpy()
    ours = encoder.text(texts)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(encoder.text(texts[1:2]), ours[1:2])


def test_random_features_tell_frames_apart(encoder: ClipEncoder) -> None:
    """The difference that one moved patch makes is far above float16's resolution."""
    frames = np.repeat(pictures(128)[1:2], 8, 0)
    for i in range(8):
        frames[i, 40:56, 8 * i : 8 * i + 16] = (200, 30, 30)
    features = encoder.images(frames).astype(np.float32)
    resolution = np.abs(features).mean() * 2**-11
    assert features.std(0).mean() > 20 * resolution


def test_seeded_weights_are_the_same_everywhere(encoder: ClipEncoder) -> None:
    assert encoder.identity["weights_sha256"] == SEEDED_SHA256
    script = (
        "import sys, pathlib; from tests.encode import tiny; from pipeline.encode.weights import *;"
        "tiny.register(pathlib.Path(sys.argv[1])); print(weights_sha256(load_model(tiny.PARAMS)))"
    )
    folder = Path(open_clip.factory._MODEL_CONFIG_PATHS[-1]).parent
    found = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},  # as on a machine without AVX2
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == SEEDED_SHA256
    assert "No pretrained weights" not in found.stderr


def test_seed_matters_and_the_global_generator_does_not() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    other = weights_sha256(load_model(replace(tiny.PARAMS, seed=1)))
    assert torch.equal(torch.get_rng_state(), before)
    assert other != SEEDED_SHA256


def test_threads_do_not_change_bytes(encoder: ClipEncoder) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
    before = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(encoder.images(frames))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_padded_batches_give_the_same_features(encoder: ClipEncoder) -> None:
    """On a GPU every batch has the size that the tower was compiled for."""
    padded = ClipEncoder(tiny.PARAMS, batch_size=5)
    assert padded._batch_size is None  # on a CPU nothing is compiled and nothing padded
    seen: list[tuple[int, ...]] = []
    padded._batch_size, tower = 5, padded.tower
    padded._run = lambda images: seen.append(tuple(images.shape)) or tower(images)  # type: ignore[func-returns-value]
    frames = np.random.default_rng(0).integers(0, 256, (7, 24, 24, 3), np.uint8)
    waiting = [padded.submit(padded.prepare(part)) for part in (frames[:5], frames[5:])]
    found = np.concatenate([wait()["image"] for wait in waiting])
    assert seen == [(5, 3, 32, 32)] * 2
    np.testing.assert_allclose(found, encoder.images(frames), rtol=2e-3, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("grid", [None, GridParams(7, -1)])
def test_on_a_gpu_features_are_those_of_the_cpu(grid: GridParams | None) -> None:
    """In bf16, compiled, its batch filled up, as a build has it; to fp32."""
    params = EncoderParams("ViT-S-32", "seeded", 0, "fp32")
    usual, there = ClipEncoder(params, "cpu", grid), ClipEncoder(replace(params, precision="bf16"), "cuda", grid, 8)
    frames = np.random.default_rng(0).integers(0, 256, (5, 128, 128, 3), np.uint8)
    wanted, found = usual.forward(usual.prepare(frames)), there.forward(there.prepare(frames))
    for kind, features in wanted.items():
        a, b = (x.reshape(5, -1).astype(np.float64) for x in (features, found[kind]))
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() >= 0.9995, kind


@pytest.mark.gpu
def test_on_a_gpu_preparing_waits_for_nothing() -> None:
    encoder = ClipEncoder(tiny.PARAMS, "cuda", None, 8)
    frames, light = np.zeros((8, 128, 128, 3), np.uint8), np.full((8, 2), 0.9)
    encoder.prepare(frames, light)  # loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        encoder.prepare(frames, light)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_fit_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_batch_size("ViT-B-16", "cpu", 16) == 64
    for gib, model, rows, expected in (
        (141, "ViT-B-16", 4096, 1024),
        (141, "ViT-B-16", 256, 256),
        (141, "ViT-B-16", 1536, 768),
        (8, "ViT-B-16", 4096, 128),
        (24, "ViT-L-14", 4096, 256),
        (8, "ViT-B-32", 4096, 512),
    ):
        device = SimpleNamespace(total_memory=gib * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, device=device: device)
        assert default_batch_size(model, "cuda:0", rows) == expected, (gib, model, rows)


def test_bf16_is_recorded_and_close(encoder: ClipEncoder) -> None:
    half = ClipEncoder(replace(tiny.PARAMS, precision="bf16"))
    assert (encoder.identity["precision"], half.identity["precision"]) == ("fp32", "bf16")
    frames = pictures(128)
    assert cosine(half.images(frames), encoder.images(frames)).min() >= 0.999


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert resolve_precision("auto", "cpu") == expected
        assert resolve_precision("fp32", "cpu") == "fp32"


def test_local_files(checkpoint: Path, tmp_path: Path) -> None:
    params = replace(tiny.PARAMS, pretrained=str(checkpoint))
    encoder = ClipEncoder(params)
    assert encoder.identity["pretrained"] == "weights.safetensors"
    assert encoder.identity["seed"] is None
    state = load_model(params).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    again = ClipEncoder(replace(params, pretrained=str(tmp_path / "w.pt")))
    assert again.identity["weights_sha256"] == encoder.identity["weights_sha256"] != SEEDED_SHA256
    np.testing.assert_array_equal(again.images(pictures(32)), encoder.images(pictures(32)))


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil",)


def test_damaged_and_dangerous_files(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.safetensors").write_bytes(checkpoint.read_bytes()[:5000])
    torch.save({"state_dict": load_model(tiny.PARAMS).state_dict(), "hook": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil()))
    state = load_model(tiny.PARAMS).state_dict()
    del state["visual.proj"]
    torch.save(state, tmp_path / "other.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "jit.pt")
    for name, message in (
        ("short.safetensors", "short.safetensors is no safetensors file, or a trunc"),
        ("evil.pt", "cannot load evil.pt"),
        ("bare.pt", "cannot load bare.pt"),
        ("other.pt", "visual.proj.*weights of tiny-clip and no other"),
        ("jit.pt", "TorchScript archive.*tag 'openai'"),
        ("none.pt", "no file none.pt"),
    ):
        with pytest.raises(AssetError, match=f"^embed.encoder.pretrained: .*{message}"):
            load_model(replace(tiny.PARAMS, pretrained=name))
    assert not (tmp_path / "evil").exists()


def test_quickgelu_mismatch_is_refused_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("went on"))
    for model, tag, remedy in (
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
        ("ViT-L-14", "openai", "ViT-L-14-quickgelu"),
        ("ViT-B-32", "metaclip_400m", "ViT-B-32-quickgelu"),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", "ViT-B-16"),
    ):
        with pytest.raises(ConfigError, match=f"features would be wrong. Set embed.encoder.model: {remedy}$"):
            load_model(replace(tiny.PARAMS, model=model, pretrained=tag))


def test_quickgelu_mismatch_of_local_files(checkpoint: Path, tmp_path: Path) -> None:
    state = load_model(replace(tiny.PARAMS, pretrained=str(checkpoint))).state_dict()
    openai = {name: value.half().float() for name, value in state.items()}
    openai["logit_scale"] = torch.tensor(100.0).log()
    save_file(openai, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"exact in half precision.*activation=gelu"):
        load_model(replace(tiny.PARAMS, pretrained=str(tmp_path / "a.safetensors")))
    load_model(replace(tiny.PARAMS, model=f"{tiny.MODEL}-quickgelu", pretrained=str(tmp_path / "a.safetensors")))
    save_file(openai, tmp_path / "b.safetensors", metadata={"activation": "gelu"})
    load_model(replace(tiny.PARAMS, pretrained=str(tmp_path / "b.safetensors")))
    with pytest.raises(ConfigError, match=r"Set embed.encoder.model: tiny-clip$"):
        load_model(replace(tiny.PARAMS, model=f"{tiny.MODEL}-quickgelu", pretrained=str(tmp_path / "b.safetensors")))


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"no 'ViT-S32'. Did you mean 'ViT-S-32'"):
        load_model(replace(tiny.PARAMS, model="ViT-S32"))
    with pytest.raises(ConfigError, match=r"'opnai' is no tag of ViT-B-16-quickgelu, and no file. Did you mean 'o"):
        load_model(replace(tiny.PARAMS, model="ViT-B-16-quickgelu", pretrained="opnai"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """A tag "test" of tiny-clip, and a server on the loopback that answers as the Hugging Face hub: path -> file."""
    with serving(monkeypatch, tmp_path / "hub") as server:
        monkeypatch.setitem(registry._PRETRAINED, tiny.MODEL, {"test": {"hf_hub": "someone/tiny/"}})
        yield server.files


def test_a_tag_is_downloaded_once(hub: dict[str, bytes], checkpoint: Path) -> None:
    hub["/someone/tiny/resolve/main/open_clip_model.safetensors"] = checkpoint.read_bytes()
    tagged = load_model(replace(tiny.PARAMS, pretrained="test"))
    hub.clear()
    again = load_model(replace(tiny.PARAMS, pretrained="test"))
    local = load_model(replace(tiny.PARAMS, pretrained=str(checkpoint)))
    assert weights_sha256(tagged) == weights_sha256(local) == weights_sha256(again)


def test_a_known_repository_is_taken_at_its_commit(
    hub: dict[str, bytes], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REVISIONS, "someone/tiny", "0" * 40)
    hub["/someone/tiny/resolve/main/open_clip_model.safetensors"] = b"other weights"
    hub[f"/someone/tiny/resolve/{'0' * 40}/open_clip_model.safetensors"] = checkpoint.read_bytes()
    params = replace(tiny.PARAMS, pretrained="test")
    local = load_model(replace(tiny.PARAMS, pretrained=str(checkpoint)))
    assert weights_sha256(load_model(params)) == weights_sha256(local)
    assert hub_source(params) == {"repository": "someone/tiny", "commit": "0" * 40}
    assert hub_source(tiny.PARAMS) is None


def test_a_damaged_download_is_refused(hub: dict[str, bytes], checkpoint: Path, tmp_path: Path) -> None:
    hub["/someone/tiny/resolve/main/open_clip_model.safetensors"] = checkpoint.read_bytes()
    params = replace(tiny.PARAMS, pretrained="test")
    load_model(params)
    (blob,) = (tmp_path / "hub").rglob("blobs/*")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1  # of the last weight: the file still opens
    blob.write_bytes(content)
    with pytest.raises(AssetError, match=rf"{blob} is damaged: its SHA-256 is "):
        load_model(params)


def test_no_network(hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with (
        no_log_records(),
        pytest.raises(AssetError, match=r"cannot get the weights 'test' of tiny-clip \(someone/tiny/\): .*'seeded'"),
    ):
        load_model(replace(tiny.PARAMS, pretrained="test"))
    assert time.monotonic() - started < 10


@contextlib.contextmanager
def no_log_records() -> Iterator[None]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)
    assert not records
