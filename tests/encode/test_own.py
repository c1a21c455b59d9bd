"""The project's own CLIP is loaded as any other, and what is not it is refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from pipeline.encode import own
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.encode.weights import load_model
from pipeline.errors import AssetError, ConfigError, DataError
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import tasks

RANDOM = EncoderParams(own.MODEL, "seeded", 0, "fp32")
OWN = EncoderParams(own.MODEL, own.TAG, 0, "fp32")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights in half precision, and their recipe, where the project's own are looked for."""
    weights, recipe = tmp_path / "own.safetensors", tmp_path / "own.recipe"
    halves = {name: value.half() for name, value in load_model(RANDOM).state_dict().items()}
    save_file(halves, weights, {"activation": "gelu"})
    learnt = {
        "vocabulary": hashlib.sha256(own.VOCABULARY.read_bytes()).hexdigest(),
        "architecture": json.loads(own.CONFIG.read_text()),
    }
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    recipe.write_text(json.dumps({"sha256": sha256, "identity": learnt}))
    monkeypatch.setattr(own, "WEIGHTS", weights)
    monkeypatch.setattr(own, "RECIPE", recipe)
    return weights


def test_it_takes_pictures_of_libero_as_they_are(published: Path) -> None:
    encoder = ClipEncoder(OWN, grid=GridParams(8, -1))
    assert (encoder.image_size, encoder.dim, encoder.tokens) == (128, 256, (64, 256))
    frames = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)
    rounded = ClipEncoder(RANDOM).images(frames)
    np.testing.assert_allclose(encoder.images(frames), rounded, atol=0.02)
    larger = frames.repeat(2, 1).repeat(2, 2)  # any square picture is brought to its size, as by open_clip's transform
    assert np.abs(encoder.images(larger).astype(np.float32) - encoder.images(frames)).mean() < 0.3
    with pytest.raises(DataError, match="frames are 128x64; the transform takes square ones"):
        encoder.images(frames[:, :, :64])


def test_damaged_or_missing_weights_are_refused(published: Path) -> None:
    content = bytearray(published.read_bytes())
    content[-1000] ^= 1
    published.write_bytes(bytes(content))
    with pytest.raises(AssetError, match=r"own.safetensors: damaged: its SHA-256 is .* python -m stages.pretrain_clip"):
        load_model(OWN)
    recipe = published.with_suffix(".recipe")
    for text in ("{", "[]", "{}"):
        recipe.write_text(text)
        with pytest.raises(AssetError, match=r"own.recipe: damaged: it does not name the SHA-256"):
            load_model(OWN)
    published.unlink()
    with pytest.raises(AssetError, match=r"own.safetensors: No such file .* Check it out again"):
        load_model(OWN)


def test_weights_beside_another_vocabulary_or_architecture_are_refused(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.bpe.gz"
    other.write_bytes(own.VOCABULARY.read_bytes()[:-1])
    with monkeypatch.context() as patch:
        patch.setattr(own, "VOCABULARY", other)
        with pytest.raises(AssetError, match=r"own.safetensors: learnt by another other.bpe.gz than lies beside it"):
            own.weights()
    changed = tmp_path / "changed.json"
    changed.write_text(own.CONFIG.read_text().replace("48", "49"))
    monkeypatch.setattr(own, "CONFIG", changed)
    with pytest.raises(AssetError, match=r"own.safetensors: learnt by another changed.json than lies beside it"):
        own.weights()
    changed.write_text("{")
    with pytest.raises(AssetError, match=r"changed.json: damaged or not there .* Check it out again"):
        own.weights()


def test_its_weights_fit_no_other_model(published: Path) -> None:
    with pytest.raises(ConfigError, match="'libero' is no tag of ViT-B-32"):
        load_model(EncoderParams("ViT-B-32", own.TAG, 0, "fp32"))
    with pytest.raises(AssetError, match=r"It must be a \.safetensors or torch file with the weights of ViT-S-32"):
        load_model(EncoderParams("ViT-S-32", str(published), 0, "fp32"))
    with pytest.raises(ConfigError, match=r"'libro' is no tag of ViT-Ti-16-LIBERO.* 'libero'"):
        load_model(EncoderParams(own.MODEL, "libro", 0, "fp32"))


def test_a_text_that_would_be_cut_off_is_refused() -> None:
    encoder = ClipEncoder(RANDOM)
    fits = " ".join(["plate"] * 46)
    assert encoder.text([fits]).shape == (1, 256)
    with pytest.raises(DataError, match="reads texts of 46 tokens, and this one has 47"):
        encoder.text([f"{fits} plate"])


def test_a_text_that_a_tokenizer_of_another_kind_would_cut_off_is_refused(tmp_path: Path) -> None:
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "plate")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path)
    encoder = ClipEncoder(RANDOM)
    encoder.tokenizer = HFTokenizer(str(tmp_path), context_length=48)
    fits = " ".join(["plate"] * 46)
    assert encoder.text([fits]).shape == (1, 256)
    with pytest.raises(DataError, match="reads texts of 46 tokens, and this one has 47"):
        encoder.text([f"{fits} plate"])


@pytest.mark.parametrize(("mode", "most"), [(None, 47), ("clips", 45)])
def test_nor_does_one_that_pads_by_its_last_token_or_adds_one_behind(
    mode: str | None, most: int, tmp_path: Path
) -> None:
    words = {word: i for i, word in enumerate(("plate", "</s>", "<s>", "<cls>"))}
    inner = Tokenizer(WordLevel(words, unk_token="plate"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    ends = {"pad_token": "</s>", "eos_token": "</s>", "bos_token": "<s>", "cls_token": "<cls>"}  # SigLIP pads so
    PreTrainedTokenizerFast(tokenizer_object=inner, **ends).save_pretrained(tmp_path)
    encoder = ClipEncoder(RANDOM)
    encoder.tokenizer = HFTokenizer(str(tmp_path), context_length=48, tokenizer_mode=mode)
    fits = " ".join(["plate"] * most)
    assert encoder.text([fits]).shape == (1, 256)
    with pytest.raises(DataError, match=f"reads texts of {most} tokens, and this one has {most + 1}"):
        encoder.text([f"{fits} plate"])


def test_patch_tokens_of_a_timm_tower_are_those_of_the_block() -> None:
    encoder = ClipEncoder(RANDOM, grid=GridParams(4, -2))
    images = encoder.prepare(np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8))
    seen: list[torch.Tensor] = []
    with encoder.visual.trunk.blocks[-2].register_forward_hook(lambda module, inputs, output: seen.append(output)):
        grid = encoder.forward(images)["grid"]
    patches = seen[0][:, 1:].reshape(2, 4, 2, 4, 2, 256).mean((2, 4)).flatten(1, 2)  # without the class token
    np.testing.assert_allclose(grid, patches.numpy(), rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match=r"layer is -6; ViT-Ti-16-LIBERO has the blocks -1 \(the last\) to -5"):
        ClipEncoder(RANDOM, grid=GridParams(4, -6))


def test_the_published_files_are_small_and_say_how_they_were_made() -> None:
    recipe = json.loads(own.RECIPE.read_text())
    assert own.weights().stat().st_size <= 12e6
    assert recipe["model"] == own.MODEL and set(recipe["identity"]) >= {"pretrain_clip", "scenes", "code", "versions"}
    assert {value.dtype for value in load_file(own.WEIGHTS).values()} == {torch.float16}


@pytest.mark.sim
@pytest.mark.slow
def test_the_published_weights_know_scenes_by_their_instructions(sim: Sim) -> None:
    """Of three scenes each picture is nearest to its own task, and each task to its own picture."""
    chosen = [tasks(suite, [i])[0] for suite, i in (("libero_spatial", 0), ("libero_object", 0), ("libero_10", 8))]
    pictures = []
    for task in chosen:
        with Simulator(task, replace(sim, image_size=128), ("agentview",)) as simulator:
            simulator.reset(None, 0)
            pictures.append(simulator.observe().images["agentview"])
    encoder = ClipEncoder(OWN)
    images, texts = encoder.images(np.stack(pictures)).astype(np.float32), encoder.text([t.language for t in chosen])
    cosine = (images / np.linalg.norm(images, axis=1, keepdims=True)) @ (
        texts / np.linalg.norm(texts, axis=1, keepdims=True)
    ).T
    assert list(cosine.argmax(0)) == list(cosine.argmax(1)) == [0, 1, 2]
    own_task, other = cosine.diagonal(), cosine[~np.eye(3, dtype=bool)]
    assert own_task.min() > other.max() + 0.1
