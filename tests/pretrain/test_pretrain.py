"""The project's own CLIP in training: what it is told is so, it is open_clip's model, and a kill changes nothing."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.encode import own
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import Preprocess
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.encode.weights import load_tokenizer
from pipeline.errors import AssetError, ConfigError, DataError
from pipeline.pretrain import job, vocabulary
from pipeline.pretrain.batches import Batches
from pipeline.pretrain.captions import Tokens, Writer, distinct
from pipeline.pretrain.data import NOUNS, Samples, _truth, load
from pipeline.pretrain.evaluate import RIDGES, fit_probes, linear_probe, matching, probe_errors
from pipeline.pretrain.settings import PretrainParams
from pipeline.scenes.facts import CENTRE_SUITES, Fact
from pipeline.scenes.state import THINGS
from pipeline.scenes.store import HELD_OUT, TRAIN, Pictures
from tests.scenes.made import write_store

SETTINGS = PretrainParams(
    pretrained=None,
    lock_image=False,
    steps=4,
    batch_size=6,
    learning_rate=1e-3,
    weight_decay=0.05,
    warmup_steps=2,
    ema_decay=0.5,
    precision="fp32",
    evaluate_every=2,
    seed=0,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("scenes") / "scenes.zarr"
    patch = pytest.MonkeyPatch()
    write_store(path, 4, patch)
    yield path
    patch.undo()


@pytest.fixture(scope="module")
def samples(store: Path) -> Samples:
    return load(store, [TRAIN], 8)


def test_what_a_patch_shows_and_where_it_is(samples: Samples) -> None:
    bowl, plate, cabinet = (NOUNS.index(noun) for noun in ("black bowl", "plate", "wooden cabinet"))
    assert set(np.unique(samples.patch_noun)) <= {-1, *(NOUNS.index(n) for n in ("ramekin",)), bowl, plate, cabinet}
    assert (samples.patch_noun[:, :, 7 * 8] == cabinet).all(), "bottom left"
    row = int(np.flatnonzero((samples.patch_noun[:, 0] == plate).any(1))[0])
    patch = int(np.flatnonzero(samples.patch_noun[row, 0] == plate)[0])
    np.testing.assert_allclose(samples.patch_place[row, 0, patch], samples.place[row, 0, plate])
    np.testing.assert_allclose(
        samples.place[row, 1, plate], samples.place[row, 0, plate] - samples.hand[row, :3], atol=1e-6
    )  # the hand is not turned
    assert np.isnan(samples.patch_place[samples.patch_noun == -1]).all()


def test_captions_are_so_and_the_changed_ones_are_not(samples: Samples) -> None:
    writer, rng = Writer(samples), np.random.default_rng(0)
    rows, cameras = rng.integers(len(samples), size=64), rng.integers(2, size=64)
    captions = writer.write(rows, cameras, rng)
    assert (captions.label[:, :64].diagonal() == 1).all()
    assert set(captions.changed) == {-1, 0, 1, 2} and (captions.changed >= 0).mean() > 0.7
    assert (captions.label[:, 64:].diagonal()[captions.changed >= 0] == -1).all()
    true, changed = captions.texts[:64], captions.texts[64:]
    assert all((a != b) or c < 0 for a, b, c in zip(true, changed, captions.changed, strict=True))
    assert len(set(true)) > 50


def test_what_is_changed_is_a_relation_two_names_or_one_name(samples: Samples) -> None:
    writer = Writer(samples)
    for i, fact in enumerate(samples.facts):
        relation, places, name = ([samples.facts[j] for j in near] for near in writer._near(i))
        assert all(f.names == fact.names and f.predicate != fact.predicate for f in relation)
        assert all(sorted(f.names) == sorted(fact.names) and f.predicate == fact.predicate for f in places)
        assert all(sum(a != b for a, b in zip(f.names, fact.names, strict=True)) == 1 for f in name)
    left = next(i for i, f in enumerate(samples.facts) if f == Fact("left_of", ("black bowl", "plate")))
    assert [samples.facts[j] for j in writer._near(left)[1]] == [Fact("left_of", ("plate", "black bowl"))]


def test_instructions_that_can_mean_the_same_are_not_contrasted() -> None:
    pick, place = "pick up the milk and put it in the basket", "pick up the milk and place it in the basket"
    assert distinct([pick, place, "turn on the stove"]) == [pick, "turn on the stove"]


def test_pictures_of_which_nothing_can_be_said_are_passed_over(samples: Samples) -> None:
    truth = samples.truth.copy()
    truth[:-1, 1] = truth[1:, 0] = 0  # all but one picture of each camera
    hardly = replace(samples, truth=truth)
    assert hardly.sayable.sum(0).tolist() == [1, 1]
    preprocess, tokenizer = Preprocess(128, (0.5,) * 3, (0.2,) * 3), load_tokenizer(own.MODEL)
    batch = Batches(hardly, preprocess, tokenizer, 0).draw(0, 12)
    assert (batch.label[:, :12].diagonal() == 1).all()
    assert set(batch.hand[batch.camera == 0, 0].tolist()) == {float(samples.hand[0, 0])}
    features = np.ones((len(samples), 4), np.float32)
    found = matching(hardly, features, lambda texts: np.ones((len(texts), 4), np.float32), 0, False)
    assert found["sentence_to_picture"]["n"] == 1
    with pytest.raises(DataError, match="nothing can be said of any picture of a camera"):
        Batches(replace(samples, truth=np.zeros_like(truth)), preprocess, tokenizer, 0)


def test_what_is_not_judged_in_a_scene_is_not_said_to_be_untrue(samples: Samples, store: Path) -> None:
    spatial, centre = Pictures(store), Fact("centre", ("black bowl",))
    assert {c.suite for c in spatial.contents.values()} <= set(CENTRE_SUITES)
    state = {name: np.concatenate([values, values]) for name, values in spatial.state().items()}
    one = len(spatial.split)
    state["scene"][one:] = 77  # the same once more, as a scene of another suite
    contents = {**spatial.contents, 77: replace(next(iter(spatial.contents.values())), suite="libero_90")}
    pixels = np.full((2 * one, 2, THINGS), 400, np.int32)
    facts, truth = _truth(contents, state, pixels)
    assert set(np.unique(truth[:one, 0, facts.index(centre)])) - {0}
    assert (truth[one:, :, facts.index(centre)] == 0).all()


def test_texts_are_read_as_open_clip_reads_them() -> None:
    model, tokenizer = job.make_model(SETTINGS).eval(), load_tokenizer(own.MODEL)
    texts = ["the plate", "pick up the black bowl next to the ramekin and place it on the plate", "xylophone quartz"]
    with torch.no_grad():
        short = model.read(torch.from_numpy(Tokens(tokenizer)(texts)))
        np.testing.assert_allclose(short, model.clip.encode_text(tokenizer(texts)), atol=1e-5)


def test_a_batch_depends_on_seed_and_step_alone(samples: Samples) -> None:
    def draw(step: int) -> torch.Tensor:
        made = Batches(samples, Preprocess(128, (0.5,) * 3, (0.2,) * 3), load_tokenizer(own.MODEL), 0)
        return made.draw(step, 4).images

    torch.testing.assert_close(draw(3), draw(3), rtol=0, atol=0)
    assert (draw(3) != draw(4)).any()


@pytest.mark.slow
def test_stopped_and_started_again_it_makes_the_same_weights(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, gone_on = tmp_path / "whole", tmp_path / "gone_on"
    job.run(SETTINGS, store, tmp_path / "a", whole)
    check, calls = job.check, []

    def stop(*args: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return check(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "check", stop)
    with pytest.raises(KeyboardInterrupt):
        job.run(SETTINGS, store, tmp_path / "b", gone_on)
    monkeypatch.setattr(job, "check", check)
    job.run(SETTINGS, store, tmp_path / "b", gone_on)
    files = [folder / own.WEIGHTS.name for folder in (whole, gone_on)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size < 12e6, "what the repository takes"
    curves = (gone_on / "curves.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in curves] == ["step", "2", "4"]
    recipe = json.loads((whole / own.RECIPE.name).read_text())
    assert recipe["identity"]["scenes"] == "made" and recipe["held_out"]["step"] == 4
    _is_loaded_like_any_other(files[0])
    monkeypatch.setattr(job, "_train", stop)
    assert job.run(SETTINGS, store, tmp_path / "c", whole)["step"] == 4, "it is there: nothing is trained again"


@pytest.mark.slow
def test_with_the_image_tower_locked_text_alone_learns(store: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    job.run(SETTINGS, store, tmp_path / "a", first)
    settings = replace(SETTINGS, pretrained=str(first), lock_image=True)
    last = job.run(settings, store, tmp_path / "b", second)
    assert "held_out/place_cm" not in last, "of heads that learnt nothing"
    before, after = (load_file(folder / own.WEIGHTS.name) for folder in (first, second))
    text = ("transformer.", "token_embedding", "positional_embedding", "ln_final", "text_projection", "logit_scale")
    for name, value in before.items():
        learns = name.startswith(text)
        assert learns or name.startswith("visual."), name
        if "logit_scale" not in name:  # which moves by less than half precision shows
            assert torch.equal(after[name], value) != learns, name
    recipes = [json.loads((folder / own.RECIPE.name).read_text()) for folder in (first, second)]
    begun = {"sha256": recipes[0]["sha256"], "identity": recipes[0]["identity"]}
    assert recipes[1]["identity"]["pretrain_clip"]["pretrained"] == begun, "whatever the directory is called"
    with pytest.raises(ConfigError, match=r"--out .*first: has the weights that pretrain_clip.pretrained names"):
        job.run(settings, store, tmp_path / "c", first)
    weights = first / own.WEIGHTS.name
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AssetError, match=r"first/.*safetensors: damaged.* pretrain_clip.pretrained is null"):
        job.run(settings, store, tmp_path / "c", tmp_path / "third")


def _is_loaded_like_any_other(weights: Path) -> None:
    encoder = ClipEncoder(EncoderParams(own.MODEL, str(weights), 0, "fp32"), grid=GridParams(8, -1))
    frames = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    model = job.make_model(SETTINGS).eval()
    model.clip.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    with torch.no_grad():
        pooled, tokens = model.see(
            Preprocess.from_open_clip(model.clip.visual.preprocess_cfg)(torch.from_numpy(frames))
        )
    found = encoder.forward(encoder.prepare(frames))
    np.testing.assert_allclose(found["image"], pooled, atol=2e-2)
    np.testing.assert_allclose(found["grid"], tokens, atol=2e-2)


def test_the_vocabulary_is_the_one_in_use() -> None:
    assert vocabulary.content() == own.VOCABULARY.read_bytes()
    tokenizer = load_tokenizer(own.MODEL)
    assert tokenizer.vocab_size == json.loads(own.CONFIG.read_text())["text_cfg"]["vocab_size"]
    in_parts = {word for word in vocabulary.words() if len(tokenizer.encode(word)) > 1}
    assert in_parts == {"gripper", "moka", "ramekin"}, "which OpenAI's vocabulary does not have whole"


def test_a_missing_shard_is_no_black_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "scenes.zarr", 2, monkeypatch)
    shard = next(path for path in (tmp_path / "scenes.zarr/label/agentview/c").rglob("*") if path.is_file())
    shard.unlink()
    with pytest.raises(DataError, match=r"label/agentview: has 1 of 2 shards. Take the pictures"):
        Pictures(tmp_path / "scenes.zarr")


@pytest.mark.parametrize("columns", [6, 250], ids=["fewer features than rows", "more"])
def test_a_linear_probe_finds_what_is_linear(columns: int) -> None:
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(6, 3)), rng.normal(size=(300, columns))
    y = x[:, :6] @ weights + 0.5
    y[::7] = np.nan
    probe, blind = linear_probe(x[:200], y[:200]), linear_probe(rng.normal(size=(200, columns)), y[:200])
    assert probe is not None and blind is not None

    def error(found: Callable[[np.ndarray], np.ndarray]) -> float:
        errors = np.linalg.norm(found(x[200:]) - y[200:], axis=1)
        return float(errors[~np.isnan(errors)].mean())

    assert error(probe) < (0.01 if columns == 6 else 0.75 * error(blind))
    assert linear_probe(x, np.full((300, 3), np.nan)) is None


def test_a_probes_strength_is_the_one_that_errs_least_on_rows_left_out() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 40))
    x = (x - x.mean(0)) / x.std(0)
    y = x[:, :5] @ rng.normal(size=(5, 3)) + 0.3 * rng.normal(size=(30, 3))
    y -= y.mean(0)

    def solved(ridge: float, rows: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x[rows].T @ x[rows] + ridge * 40 * np.eye(40), x[rows].T @ y[rows])

    each = [np.delete(np.arange(30), i) for i in range(30)]
    errors = [np.mean([np.linalg.norm(x[i] @ solved(r, rows) - y[i]) for i, rows in enumerate(each)]) for r in RIDGES]
    probe = linear_probe(x, y)
    assert probe is not None
    np.testing.assert_allclose(probe(x), x @ solved(RIDGES[int(np.argmin(errors))], np.arange(30)), atol=1e-3)


def test_retrieval_by_features_that_hold_the_truth_and_by_others(samples: Samples) -> None:
    """A picture's features are what is so of it, a sentence's are its facts: by them all is found, by noise little."""
    column = {text: i for i, text in enumerate(f"{f.predicate} {f.names}" for f in samples.facts)}
    truth = samples.truth[:, 0].astype(np.float32)

    def said(texts: list[str]) -> np.ndarray:
        return np.stack([known[text] for text in texts])

    known: dict[str, np.ndarray] = {}
    say = Writer._say

    def remember(self: Writer, facts: list[int], rng: np.random.Generator, held_out: bool) -> str:
        text = f"{len(known)} {say(self, facts, rng, held_out)}"
        known[text] = np.isin(np.arange(len(column)), facts).astype(np.float32)
        return text

    patch = pytest.MonkeyPatch()
    patch.setattr(Writer, "_say", remember)
    found = matching(samples, truth, said, 0, False)
    shuffled = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    noise = matching(samples, shuffled, said, 0, False)
    patch.undo()
    assert found["one_relation_changed"]["right"] / found["one_relation_changed"]["n"] > 0.95
    assert found["sentence_to_picture"]["right"] == found["sentence_to_picture"]["n"] == len(samples)
    changed = [noise[kind] for kind in ("one_relation_changed", "one_name_changed")]
    assert 0.25 < sum(row["right"] for row in changed) / sum(row["n"] for row in changed) < 0.75
    assert 0 < noise["retrieval_by_chance"] < 1


def test_probes_of_pictures(samples: Samples, store: Path) -> None:
    held_out = load(store, [HELD_OUT], 8)
    plate = NOUNS.index("plate")
    of_these, of_those = samples.place[:, 0, plate], held_out.place[:, 0, plate]
    found = probe_errors(fit_probes(of_these, samples), of_those, held_out)
    assert found["plate"]["mean_cm"] < 0.1 and found["plate"]["n"] == len(held_out)
    assert "black bowl" not in found, "there are two in each picture"
    one, other = (replace(some, shown=np.ones_like(some.shown)) for some in (samples, held_out))
    assert found["plate"]["mean_cm"] < probe_errors(fit_probes(of_these, one), of_those, other)["black bowl"]["mean_cm"]
