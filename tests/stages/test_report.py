"""The report's real main() on small result files: what it says, whether it is sound, what a browser makes of it."""

import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.report.charts import ticks
from pipeline.report.html import Markup, el
from pipeline.report.results import command
from pipeline.rollout.metrics import paired, rates, summary, timings
from pipeline.rollout.results import write_records
from pipeline.rollout.video import VideoRecorder
from stages import report
from tests.rollout.make import record
from tests.stages.browser import CHROMIUM, Page, drawn


def clip(hue: int) -> bytes:
    """A recording in which a square moves."""
    recorder = VideoRecorder(("agentview", "eye_in_hand"))
    for t in range(30):
        image = np.full((64, 64, 3), (hue, 90, 120), np.uint8)
        image[20:36, t : t + 16] = 255
        recorder.add({"agentview": image, "eye_in_hand": image[::-1].copy()})
    content = recorder.close()
    assert content is not None
    return content


def curve(epochs: int) -> list[dict]:
    rows = []
    for e in range(epochs):
        row = {"epoch": e, "step": 10 * e, "train_loss": 2 * 0.985**e, "val_loss": 2 * 0.985**e + 0.02}
        if e % 5 == 0 or e == epochs - 1:
            row |= {f"{s}_action_mse": 0.5 * 0.98**e for s in ("train", "val")}
            row |= {"train_action_mae": 0.4 * 0.99**e, "val_action_mae": None}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A directory with the files that the stages before would have left."""
    root = tmp_path_factory.mktemp("project")
    videos = root / "results/flow/videos"
    videos.mkdir(parents=True)
    records = []
    for task in range(3):
        for episode in range(10):
            outcome = "failure" if episode < 2 * task else "success"
            outcome = "error" if (task, episode) == (2, 9) else outcome
            video = f"videos/{task}-{episode}.mp4" if episode in (0, 5) else None
            if video:
                (root / "results/flow" / video).write_bytes(clip(80 * task))
            records.append(record(outcome, task, episode, video=video))
    write_records(root / "results/flow/episodes.jsonl", records)
    results = {
        **summary(records),
        "protocol": {
            "agent": {
                "name": "policy",
                "spec": {"note": "<script>alert(1)</script>"},
                "encoder": {"model": "ViT-S-32", "pretrained": "seeded", "precision": "bf16"},
            },
            "tasks": [{"suite": "libero_spatial", "task": task, "max_steps": 220} for task in range(3)],
            "sim": {"assets": "0123abcd", "render": "fast"},
            "order": "seed, reset, set init state, settle",
            "max_steps": None,
            "simulators": [{"gl_used": "egl", "renderer": "llvmpipe"}],
        },
        "versions": {"mujoco": "3.3.2"},
        "timings": {"wall_s": 95.4, **timings(records)},
        "provenance": {"git": "0123abc", "argv": ["eval_libero.py", "--set", "eval_libero.conditions={}"]},
    }
    (root / "results/flow/eval.json").write_text(json.dumps(results))
    training = {
        "epochs": curve(150),
        "wall_s": 312.0,
        "device": "cpu",
        "steps_per_s": 12.5,
        "trainable_parameters": {"total": 4_300_000},
        "recipe": {
            "train_flow": dict.fromkeys(("epochs", "seed", "action", "precision"), 3)
            | {"learning_rate": 3e-4, "batch_size": 128},
            "feature_noise": 0.1,
            "demonstrations": {"source": "scripted", "learnt": 66, "validation": 3, "steps": 6785},
            "encoder": results["protocol"]["agent"]["encoder"],
            "machine": {"device": "cpu", "name": "A processor", "cores": 2},
            "date": "2026-11-26T15:09:12+00:00",
        },
    }
    (root / "runs/flow").mkdir(parents=True)
    (root / "runs/flow/train.json").write_text(json.dumps(training))
    (root / "docs/results").mkdir(parents=True)
    for name in ("single_task_overfit_scripted", "expert", "quickstart-against-random_weights"):
        (root / f"docs/results/{name}.json").write_text("of another day")
    return root


def make(project: Path, monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    params = Path(__file__).parents[2] / "params.yaml"
    monkeypatch.chdir(project)
    report.main(["--params", str(params), *argv])
    return Path("results/report.html").read_text()


@pytest.fixture
def html(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return make(project, monkeypatch)


def test_page_states_the_result_with_interval_and_n(html: str) -> None:
    says = Page(html).says()
    # 10 + 8 + 5 successes of 29 that did not error: Wilson, computed by hand (23/29 = .793).
    assert "79.3 %" in says and "success in 23 of 29 episodes" in says
    assert "61.6 – 90.2 %" in says and "n = 29" in says
    assert "1 episode ended in an error, which no rate counts" in says
    assert "the <GL> context is lost" in says, "an error's own words, shown as text"
    assert "95 % interval" in says and "mean time to success" in says
    assert "training5 min 12 s" in says and "plain episodes, conditions, videos1 min 35 s" in says


def test_page_has_the_recipe(html: str) -> None:
    says = Page(html).says()
    assert "encoderViT-S-32, random weights, bf16" in says and "seeded," not in says
    assert "learning rate0.0003batch size128" in says and "feature noise0.1" in says
    assert "demonstrations66 (scripted, 6,785 steps), 3 more for validation" in says
    assert "python -m stages.dataset libero_spatial" in says
    assert "machineA processor, 2 CPU coresdate2026-11-26T15:09:12+00:00" in says


def test_encoder_and_demonstrations_are_told_without_the_training(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand in eval.json, from the policy's bundle."""
    shutil.copytree(project / "results/flow", project / "results/alone", dirs_exist_ok=True)
    tree = json.loads((project / "results/alone/eval.json").read_text())
    tree["protocol"]["agent"]["recipe"] = json.loads((project / "runs/flow/train.json").read_text())["recipe"]
    (project / "results/alone/eval.json").write_text(json.dumps(tree))
    says = Page(make(project, monkeypatch, "--results", "results/alone", "--training", "")).says()
    assert "ViT-S-32, random weights" in says and "66 (scripted" in says and "learning rate0.0003" in says


def test_settings_are_those_that_were_used(html: str) -> None:
    says = Page(html).says()
    assert "control steps, at most220 (libero_spatial)" in says and "default" not in says
    assert "commandpython -m stages.eval_libero --set 'eval_libero.conditions={}'" in says


def test_every_episode_is_listed_failures_first_with_a_command_that_films_them(html: str) -> None:
    says = Page(html).says()
    listed = says[says.index("Init state, outcome and steps of each") :]
    first, last = "libero_spatial 1, episode 00failure220–", "libero_spatial 2, episode 88success108–"
    assert "steps errorlib" not in listed and first in listed and last in listed
    assert (
        listed.index(first) < listed.index("libero_spatial 2, episode 9") < listed.index("libero_spatial 0, episode 0")
    )
    command = says[says.index("python -m stages.eval_libero ") : says.index("results/filmed") + len("results/filmed")]
    asked = ["eval_libero.conditions={}", "data.suites=[libero_spatial]", "data.tasks={libero_spatial: [1]}"]
    films = ["--set", "eval_libero.videos_per_task=30", "--out", "results/filmed"]
    sets = [word for setting in asked for word in ("--set", setting)]
    assert shlex.split(command)[3:] == [*sets, *films], "a shell reads it so"


def test_contents_lead_to_the_sections(html: str) -> None:
    page = Page(html)
    links = [link["href"].removeprefix("#") for link in page.all("a")]
    assert links == [section["id"] for section in page.all("section")] and len(links) == 7


def test_curves_tell_their_values_under_a_pointer(html: str) -> None:
    # 2 * 0.985^149 = 0.2104; 150 epochs are told of at 60 places
    assert "<title>epoch 149: training 0.21, validation 0.23</title>" in html
    assert html.count("<title>epoch ") == 60 + 2 * 31


def test_page_is_sound_and_stands_alone(html: str) -> None:
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1 and page.all("title")
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert all(b - a <= 1 for a, b in pairwise(levels)), "no heading level is skipped"
    assert all(image.get("alt") for image in page.all("img"))
    assert all(image.get("aria-label") for image in page.all("video"))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    for _, attributes in page.tags:
        for name in ("src", "href", "poster"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), "nothing is fetched"
    assert "url(" not in html and "@import" not in html and "<script" not in html


def test_failures_come_first_and_all_videos_are_embedded(html: str) -> None:
    page = Page(html)
    labels = [video["aria-label"] for video in page.all("video")]
    assert len(labels) == 6
    assert ["failure" in label for label in labels] == sorted(("failure" in label for label in labels), reverse=True)
    assert "Failed episodes first: 2 of the 6 are shown." in page.says()
    assert len(page.all("img")) == 6, "a strip each in the contact sheet"


def test_nothing_but_this_run_is_read(html: str) -> None:
    """Committed figures of other runs lie in docs/results, unreadable."""
    assert "Compared" not in html and "reference" not in html and "expert" not in Page(html).says()


def test_a_baseline_needs_no_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = Page(make(project, monkeypatch, "--training", "")).says()
    assert "Learning curves" not in says and "Recipe" not in says


@pytest.mark.parametrize(
    ("flag", "command"), [("--results", "dvc repro eval_libero"), ("--training", "dvc repro train_flow")]
)
def test_missing_input_names_the_stage(project: Path, monkeypatch: pytest.MonkeyPatch, flag: str, command: str) -> None:
    with pytest.raises(DataError, match=rf"nowhere.*not found.*{command}"):
        make(project, monkeypatch, flag, "nowhere")


def test_damaged_input_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = project / "bad.json"
    bad.write_text('{"epochs": []')
    with pytest.raises(DataError, match=r"bad\.json: not valid JSON"):
        make(project, monkeypatch, "--training", "bad.json")
    bad.write_text('{"epochs": []}')
    with pytest.raises(DataError, match=r"bad\.json: has no 'wall_s'"):
        make(project, monkeypatch, "--training", "bad.json")


def test_no_result_at_all_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = project / "results/none"
    shutil.copytree(project / "results/flow", other, dirs_exist_ok=True)
    records = [record("error", 0, i) for i in range(3)]
    write_records(other / "episodes.jsonl", records)
    tree = json.loads((other / "eval.json").read_text()) | summary(records)
    (other / "eval.json").write_text(json.dumps(tree))
    says = Page(make(project, monkeypatch, "--results", "results/none")).says()
    assert "no result" in says and "success in 0 of 0 episodes" in says
    assert "None was filmed" in says and str(records[0].error) in says, "errors are listed without videos too"


def test_conditions_stand_beside_the_plain_result(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = project / "results/conditions"
    shutil.copytree(project / "results/flow", other)
    tree = json.loads((other / "eval.json").read_text())
    plain = [record("success", 0, i) for i in range(20)]
    dark = [record("failure", 0, i) for i in range(20)]
    row = {"condition": "blank_cameras", "amount": None, **rates(dark), **paired(plain, dark)}
    (other / "eval.json").write_text(json.dumps(tree | summary(plain) | {"conditions": [row]}))
    says = Page(make(project, monkeypatch, "--results", "results/conditions")).says()
    assert "What the policy uses" in says and "blank cameras" in says
    assert "0 %0 of 20, 0.0 – 16.1 %20 lost, 0 gained of 20, p = 1.9e-06" in says
    assert "With its cameras blanked it succeeds in 0 of 20 episodes: it depends on them." in says


def test_a_missing_video_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = project / "results/less"
    shutil.copytree(project / "results/flow", other)
    gone = sorted((other / "videos").iterdir())[0]
    gone.unlink()
    with pytest.raises(DataError, match=rf"{gone.name}: cannot be shown .*dvc repro -f eval_libero"):
        make(project, monkeypatch, "--results", "results/less")
    gone.write_bytes(b"no video")
    with pytest.raises(DataError, match=rf"{gone.name}: cannot be shown"):
        make(project, monkeypatch, "--results", "results/less")


def test_episodes_that_began_as_demonstrations_did_are_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = project / "results/seen"
    shutil.copytree(project / "results/flow", other)
    tree = json.loads((other / "eval.json").read_text()) | {"init_states_demonstrated": 2}
    (other / "eval.json").write_text(json.dumps(tree))
    says = Page(make(project, monkeypatch, "--results", "results/seen")).says()
    assert f"2 of the {tree['episodes']} episodes began in an init state that a demonstration" in says


def test_text_is_escaped() -> None:
    assert el("p", 'a < b & "c"', title='"x"') == '<p title="&quot;x&quot;">a &lt; b &amp; &quot;c&quot;</p>'
    assert el("p", Markup("<b>x</b>"), [el("i", "y")]) == "<p><b>x</b><i>y</i></p>"


@pytest.mark.parametrize(("top", "expected"), [(149, [0, 50, 100]), (3, [0, 1, 2, 3]), (0.9, [0, 0.2, 0.4, 0.6, 0.8])])
def test_ticks_are_round(top: float, expected: list[float]) -> None:
    assert ticks(top) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_draws_it(html: str, tmp_path: Path, width: int) -> None:
    assert drawn(html, tmp_path, width) == {
        "inner": width,
        "over": 0,
        "drawn": True,
        "images": True,
        "videos": [True] * 6,
        "violations": [],
    }


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_picture_without_words_is_found(html: str, tmp_path: Path) -> None:
    found = drawn(html.replace(' alt="', ' data-alt="', 1), tmp_path, 800)["violations"]
    assert [v.split(":")[0] for v in found] == ["image-alt"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["eval_libero.py", "--out", "a b"], "python -m stages.eval_libero --out 'a b'"),
        (["vla-flow", "eval-libero"], "vla-flow eval-libero"),
    ],
)
def test_the_command_is_one_that_runs(argv: list[str], expected: str) -> None:
    assert command({"argv": argv}) == expected
