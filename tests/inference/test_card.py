"""The model card: what the hub reads of it, and that its figures are those that were recorded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.encode import own
from pipeline.errors import DataError
from pipeline.inference.card import card, results_of
from pipeline.libero.demos.download import REPOSITORY
from pipeline.policy import bundle
from pipeline.rollout.agent import policy_identity
from tests.encode import tiny
from tests.imports import ROOT
from tests.inference.make import BOWL
from tests.inference.make import bundle as make_bundle


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    tiny.register(folder)
    return make_bundle(folder / "policy")


@pytest.fixture
def spec(path: Path) -> bundle.PolicySpec:
    return bundle.load_spec(path)


def quickstart() -> dict[str, Any]:
    """Return eval.json as the README quotes it."""
    return json.loads((ROOT / "docs/results/quickstart.json").read_text())["evaluation"]


def front(text: str) -> dict[str, Any]:
    before, matter, _ = text.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(matter)


def test_the_hub_reads_its_front_matter(spec: bundle.PolicySpec) -> None:
    plain = front(card(spec))
    assert (plain["license"], plain["pipeline_tag"]) == ("mit", "robotics")
    assert {"robotics", "flow", "libero", "libero_spatial"} <= set(plain["tags"])
    assert not {"datasets", "base_model", "model-index"} & set(plain), "seeded, scripted, not evaluated"
    recipe = {"demonstrations": {"source": "official", "learnt": 5, "validation": 0, "steps": 10}}
    named = {**spec.encoder, "model": "ViT-B-16-quickgelu", "pretrained": "openai"}
    official = front(card(replace(spec, recipe=recipe, encoder=named)))
    assert official["datasets"] == [REPOSITORY] and "license" not in official
    assert official["base_model"] == "timm/vit_base_patch16_clip_224.openai"
    (model,) = front(card(spec, quickstart(), "hf://me/bowls"))["model-index"]
    (result,) = model["results"]
    assert (model["name"], result["dataset"]["type"]) == ("me/bowls", "libero_spatial")
    (metric,) = result["metrics"]
    assert metric["value"] == 1.0 and metric["name"] == "success rate (95 % interval 83.9 % to 100.0 %, n = 20)"


def test_it_says_what_is_recorded(spec: bundle.PolicySpec) -> None:
    text = card(spec, quickstart(), "hf://me/bowls")
    for said in (
        'Policy.load("hf://me/bowls")',
        f"“{BOWL}”",
        "| `joint_pos` | (7) | float32 | rad |",
        "| `actions` | (4, 7) | float32 |",
        "Demonstrations: 9 (900 steps), 1 more for validation: recorded in the simulator by a scripted expert",
        "Tasks of libero_spatial: 0, 3.",
        "| libero_spatial | 100.0 % | 20 | 20 | 83.9 % to 100.0 % | 0 |",
        "| blank_cameras, against plain | 0.0 % | 0 | 10 | 0.0 % to 27.8 % | 0 |",
        "Its encoder has random weights",
        "rendered in quality “fast”",
    ):
        assert said in text
    assert "Not in this card, which training wrote." in card(spec)
    local = replace(spec, encoder={**spec.encoder, "pretrained": "mine.safetensors"})
    assert "a file that is not in the bundle (mine.safetensors, SHA-256" in card(local)
    libero = card(replace(spec, encoder={**spec.encoder, "model": own.MODEL, "pretrained": own.TAG}))
    assert "knows LIBERO's scenes and nothing else" in libero and "not in the bundle" not in libero
    bare = replace(spec, recipe={}, instructions=(), provenance={}, data={})
    assert "Not recorded." in card(bare)


def test_a_card_changes_no_identity(path: Path, tmp_path: Path) -> None:
    read = bundle.load(path)
    bundle.save(tmp_path / "policy", read.network, read.spec, texts=read.texts, card=card(read.spec))
    for identity in (policy_identity, bundle.weights_digest):
        before = identity(tmp_path / "policy")
        assert before == identity(path)
        (tmp_path / "policy/README.md").write_text(card(read.spec, quickstart()))
        assert identity(tmp_path / "policy") == before


def test_results_of_another_policy_are_refused(path: Path, spec: bundle.PolicySpec, tmp_path: Path) -> None:
    digest = bundle.weights_digest(path)
    with pytest.raises(DataError, match=r"eval\.json: not found\. Evaluate first"):
        results_of(tmp_path, spec, digest)
    for content in ("{}", "no", "[1]", '{"protocol": {"agent": 1}}'):
        (tmp_path / "eval.json").write_text(content)
        with pytest.raises(DataError, match=r"no result of stages\.eval_libero"):
            results_of(tmp_path, spec, digest)
    results = quickstart()
    (tmp_path / "eval.json").write_text(json.dumps(results))
    theirs = results["protocol"]["agent"]["weights_sha256"]
    with pytest.raises(DataError, match=f"weights {theirs}, and the bundle has {digest}"):
        results_of(tmp_path, spec, digest)
    results["protocol"]["agent"] |= {"weights_sha256": digest, "sampling_steps": 50}
    (tmp_path / "eval.json").write_text(json.dumps(results))
    with pytest.raises(DataError, match=r"measured with 50 sampling steps, and whoever loads the bundle gets its own"):
        results_of(tmp_path, spec, digest)
    results["protocol"]["agent"]["sampling_steps"] = spec.architecture.sampling_steps
    (tmp_path / "eval.json").write_text(json.dumps(results))
    assert results_of(tmp_path, spec, digest) == results
