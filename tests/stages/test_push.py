"""`stages.push`: what goes to the hub is what anyone loads from there."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from pipeline.errors import AssetError, ConfigError, DataError
from pipeline.hub import commit as hub_commit
from pipeline.inference.policy import Policy
from pipeline.policy import bundle
from stages import push
from tests.encode import tiny
from tests.hub import Hub, serving
from tests.inference.make import BOWL, observation
from tests.inference.make import bundle as make_bundle
from tests.inference.test_card import quickstart


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    tiny.register(folder)
    return make_bundle(folder / "runs/flow/policy", card="the card of the training\n")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as server:
        yield server


def test_a_commit_is_read_from_the_place_in_the_hubs_cache() -> None:
    assert hub_commit(Path("/mnt/snapshots/hub/models--me--bowls/snapshots/abc/policy.json")) == "abc"
    assert hub_commit(Path("/mnt/bowls/policy.json")) is None


def test_a_policy_comes_back_as_it_was(
    path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.writer = "hf_mine"
    push.main([str(path), "me/bowls", "--private"])
    assert capsys.readouterr().out == f"hf://me/bowls@{hub.commit}\n"
    assert hub.repositories["me/bowls"]["visibility"] == "private"
    assert set(hub.objects.values()) == {
        (path / name).read_bytes() for name in ("weights.safetensors", "text.safetensors")
    }
    names = {name.rpartition("/")[2] for name in hub.files}
    assert names == {"policy.json", "weights.safetensors", "text.safetensors", "README.md"}
    expected = Policy.load(path, "cpu").act(observation(), BOWL)
    for source in ("hf://me/bowls", f"hf://me/bowls@{hub.commit}"):
        np.testing.assert_array_equal(Policy.load(source, "cpu").act(observation(), BOWL), expected)
    hub.files.clear()
    assert Policy.load(f"hf://me/bowls@{hub.commit}", "cpu"), "from the cache"
    push.main([str(path), "me/bowls"])
    assert Policy.load("hf://me/bowls", "cpu"), "a repository that is there is added to"


def test_what_was_pushed_since_is_loaded_and_without_the_hub_what_was_fetched(
    path: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    push.main([str(path), "me/bowls"])
    first, pinned = Policy.load("hf://me/bowls", "cpu").act(observation(), BOWL), f"hf://me/bowls@{hub.commit}"
    hub.commit = "1" * 40
    push.main([str(make_bundle(tmp_path / "policy", head_width=24)), "me/bowls"])
    second = Policy.load("hf://me/bowls", "cpu").act(observation(), BOWL)
    assert np.abs(second - first).max() > 0.01 and f"hf://me/bowls: commit {hub.commit}" in caplog.text
    np.testing.assert_array_equal(Policy.load(pinned, "cpu").act(observation(), BOWL), first)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    np.testing.assert_array_equal(Policy.load("hf://me/bowls", "cpu").act(observation(), BOWL), second)
    assert "me/bowls: taken as it was fetched before, which may not be the newest" in caplog.text


def test_the_card_has_the_results_and_the_bundle_stays_as_it_is(
    path: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = quickstart()
    steps = bundle.load_spec(path).architecture.sampling_steps
    results["protocol"]["agent"] |= {"weights_sha256": bundle.weights_digest(path), "sampling_steps": steps}
    (tmp_path / "eval.json").write_text(json.dumps(results))
    push.main([str(path), "me/bowls", "--results", str(tmp_path)])
    text = hub.files["/me/bowls/resolve/main/README.md"].decode()
    assert 'Policy.load("hf://me/bowls")' in text and "| libero_spatial | 100.0 % | 20 | 20 |" in text
    assert (path / "README.md").read_text() == "the card of the training\n"
    hub.repositories.clear()
    push.main([str(path), "--results", str(tmp_path), "--card", str(tmp_path / "card.md")])
    assert "| libero_spatial | 100.0 % | 20 | 20 |" in (tmp_path / "card.md").read_text()
    assert not hub.repositories


def test_damage_is_not_passed_on(path: Path, hub: Hub, tmp_path: Path) -> None:
    broken = make_bundle(tmp_path / "policy")
    content = bytearray((broken / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (broken / "weights.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"weights\.safetensors: has changed since it was written"):
        push.main([str(broken), "me/bowls"])
    assert not hub.repositories


def test_refusals_say_what_to_do(path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.writer = "hf_other"
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with pytest.raises(AssetError, match=r"me/bowls: cannot upload: .*401.*HF_TOKEN a token that may write"):
        push.main([str(path), "me/bowls"])
    with pytest.raises(AssetError, match="no name/at/all: cannot upload"):
        push.main([str(path), "no name/at/all"])
    for arguments in ([], ["me/bowls", "--card", "card.md"]):
        with pytest.raises(ConfigError, match="name either a repository"):
            push.main([str(path), *arguments])
    with pytest.raises(AssetError, match=r"hf://me/nothing: cannot get the policy: .*hf://user/name\[@revision\]"):
        Policy.load("hf://me/nothing", "cpu")
    with pytest.raises(AssetError, match="hf://no name: cannot get the policy"):
        Policy.load("hf://no name", "cpu")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AssetError, match=r"cannot upload: no answer from http://127\.0\.0\.1:9"):
        push.main([str(path), "me/bowls"])
