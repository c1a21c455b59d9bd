"""The report's real main() on small result files: what it says, whether it is sound, what a browser makes of it."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.report.charts import ticks
from pipeline.report.html import Markup, el
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
            "agent": {"name": "policy", "spec": {"note": "<script>alert(1)</script>"}},
            "sim": {"assets": "0123abcd", "render": "fast"},
            "order": "seed, reset, set init state, settle",
            "max_steps": None,
            "simulators": [{"gl_used": "egl", "renderer": "llvmpipe"}],
        },
        "versions": {"mujoco": "3.3.2"},
        "timings": {"wall_s": 95.4, **timings(records)},
        "provenance": {"git": "0123abc", "argv": ["eval_libero.py"]},
    }
    (root / "results/flow/eval.json").write_text(json.dumps(results))
    training = {
        "epochs": curve(150),
        "wall_s": 312.0,
        "device": "cpu",
        "steps_per_s": 12.5,
        "trainable_parameters": {"total": 4_300_000},
    }
    (root / "runs/flow").mkdir(parents=True)
    (root / "runs/flow/train.json").write_text(json.dumps(training))
    (root / "docs/results").mkdir(parents=True)
    (root / "docs/results/single_task_overfit_scripted.json").write_text(json.dumps({**training, "epochs": curve(500)}))
    row = {"task": 3, "language": "lift the cup", "successes": 19, "n": 20, "mean_steps": 117.5}
    expert = {"suite": "libero_spatial", "rows": [0, 19], "per_task": [row]}
    (root / "docs/results/expert.json").write_text(json.dumps(expert))
    (root / "data/demos").mkdir(parents=True)
    (root / "data/demos/libero_spatial.provenance.json").write_text(json.dumps({"took": {"seconds": 61.2}}))
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
    assert "demos 1 min 01 s" in " ".join(says.split()) or "demos1 min 01 s" in says


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
            assert attributes.get(name, "data:").startswith("data:"), "nothing is fetched"
    assert "url(" not in html and "@import" not in html and "<script" not in html


def test_failures_come_first_and_all_videos_are_embedded(html: str) -> None:
    page = Page(html)
    labels = [video["aria-label"] for video in page.all("video")]
    assert len(labels) == 6
    assert ["failure" in label for label in labels] == sorted(("failure" in label for label in labels), reverse=True)
    assert "Failed episodes first: 2 of the 6 are shown." in page.says()
    assert len(page.all("img")) == 6, "a strip each in the contact sheet"


def test_overfit_table_has_ours_beside_the_reference(html: str) -> None:
    says = Page(html).says()
    # at epoch 100 the reference expects 0.1, 0.05, 0.1; the synthetic curve has 2 * .985^100 = .441 and so on
    assert "1000.10.440.050.0660.10.15" in says.replace(" ", "")
    assert "Ours: 5 min 12 s on cpu. The reference: 1 to 3 h on two RTX 6000 Ada." in says


def test_expert_table_has_rates_and_intervals(html: str) -> None:
    says = Page(html).says()
    assert "init states 0 to 19" in says
    # 19 of 20: Wilson by hand 76.4 to 99.1
    assert "lift the cup95 %76.4 – 99.1 %19 of 20118" in says.replace("libero_spatial 3 ", "")


def test_a_baseline_needs_no_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = Page(make(project, monkeypatch, "--training", "", "--figures", "nowhere")).says()
    assert "Learning curves" not in says and "Overfitting" not in says and "The expert" not in says


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
    assert "None was recorded" in says and str(records[0].error) in says, "errors are listed without videos too"


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
    assert "0 of 20-20 +0 of 201.9e-06" in says
    assert "With its cameras blanked it succeeds in 0 of 20 episodes: it depends on them." in says


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def flow_and_l1(project: Path, folder: Path) -> None:
    """Write two evaluations that have twelve init states in common, and the training of the second."""
    base = json.loads((project / "results/flow/eval.json").read_text())
    for name, head, failures in (("flow", "flow", 2), ("l1", "l1", 9)):
        records = [record("failure" if i < failures else "success", 0, i) for i in range(20)]
        if name == "l1":  # of other init states but for twelve, and one error
            records = [replace(r, init_row=r.init_row + 8, episode=r.episode) for r in records[:19]]
            records.append(replace(record("error", 0, 19), init_row=27))
        records = [replace(r, task=1) if r.init_row == 19 else r for r in records]
        agent = {"name": "policy", "sampling_steps": 10, "architecture": {"head": head, "velocity": "mlp"}}
        protocol = {**base["protocol"], "agent": agent}
        place = made(folder / "results" / name)
        tree = {**base, **summary(records), "protocol": protocol}
        if name == "l1":
            tree["held_out"] = {"tasks": [["libero_spatial", 0]], **rates([r for r in records if r.task == 0])}
        moved = [record("success" if i < 7 + failures else "failure", 0, i) for i in range(20)]  # l1 solves seven more
        changes = {
            "flow": {"displaced": 0.08, "light": 0.5},
            "l1": {"displaced": 0.08, "light": 0.7, "blank_cameras": None},
        }
        tree["conditions"] = [{"condition": n, "amount": a, **rates(moved)} for n, a in changes[name].items()]
        for condition in changes[name]:
            write_records(made(place / "conditions" / condition) / "episodes.jsonl", moved)
        (place / "eval.json").write_text(json.dumps(tree))
        write_records(place / "episodes.jsonl", records)
    (folder / "runs/l1").mkdir(parents=True)
    training = {"wall_s": 61.0, "val_action_mse": 0.0123, "trainable_parameters": {"total": 4_300_000}}
    (folder / "runs/l1/train.json").write_text(json.dumps(training))


@pytest.fixture
def params(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Settings, in a directory where `flow_and_l1` were compared."""
    flow_and_l1(project, tmp_path)
    monkeypatch.chdir(tmp_path)
    path = str(Path(__file__).parents[2] / "params.yaml")
    report.main(["--params", path, "--compare", "results/flow", "results/l1"])
    return path


def test_evaluations_are_compared_on_the_same_init_states(params: str) -> None:
    flow, l1 = json.loads(Path("results/comparison.json").read_text())["rows"]
    assert flow["against_first"] is None and flow["training_s"] is None
    # Rows 8 to 19 are in both: flow solves all of them, l1 fails in 8 to 16. Nine of nine on one side: p = 2 / 2^9.
    assert l1["against_first"] == {"pairs": 12, "lost": 9, "gained": 0, "p_value": 2 / 2**9}
    assert l1["held_out"]["against_first"] == {"pairs": 11, "lost": 9, "gained": 0, "p_value": 2 / 2**9}, (
        "task 1 is not"
    )
    assert flow["held_out"] is None
    assert (l1["n"], l1["successes"], flow["successes"]) == (19, 10, 18)
    displaced, light, blank = l1["conditions"]
    assert displaced["against_first"] == {"pairs": 20, "lost": 0, "gained": 7, "p_value": 2 / 2**7}
    assert light["against_first"] is blank["against_first"] is None, "flow had other light, and was not blanked"
    tree = json.loads(Path("results/l1/eval.json").read_text())
    tree["protocol"]["sim_seed"] = 7
    Path("results/l1/eval.json").write_text(json.dumps(tree))
    report.main(["--params", params, "--compare", "results/flow", "results/l1", "--out", "results/other.html"])
    other = json.loads(Path("results/other.json").read_text())["rows"][1]
    assert other["against_first"] is other["conditions"][0]["against_first"] is None, "other fixtures"
    page = Page(Path("results/comparison.html").read_text())
    assert "-9 +0 of 120.0039l1–0.01231 min 01 s4.3 M" in page.says()
    assert "l1libero_spatial 050 %29.0 – 71.0 %9 of 18-9 +0 of 11" in page.says()
    assert "flow90 %" in page.says() and "flow, mlp10" in page.says()
    # 9 and 16 of 20: Wilson by hand 25.8 to 65.8 and 58.4 to 91.9
    assert "flow45 % (25.8 – 65.8 %)45 % (25.8 – 65.8 %)––l180 % (58.4 – 91.9 %), -0 +7 of 20–80 %" in page.says()
    assert page.all("html") == [{"lang": "en"}]


def test_documents_are_given_tables_of_a_comparison(params: str) -> None:
    document = Path("page.md")
    document.write_text("Before.\n<!-- table: comparison results/comparison.json -->\nold\n<!-- end -->\nAfter.\n")
    report.main(["--params", params, "--tables", str(document)])
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("Before.", "After.", 8) and "old" not in lines
    assert "| 52.6 %: 10 of 19, 31.7 – 72.7 % | -9 +0 of 12, p = 0.0039 | 0.0123 | 1 min 01 s | 4.3 M |" in lines[5]
    document.write_text("<!-- table: held_out results/comparison.json -->\n<!-- end -->\n")
    report.main(["--params", params, "--tables", str(document)])
    row = "| `l1` | libero_spatial 0 | 50 %: 9 of 18, 29.0 – 71.0 % | -9 +0 of 11, p = 0.0039 |"
    assert document.read_text().splitlines()[3] == row
    document.write_text("<!-- table: compared_conditions results/comparison.json -->\n<!-- end -->\n")
    report.main(["--params", params, "--tables", str(document)])
    head, _, flow_row, l1_row = document.read_text().splitlines()[1:-1]
    assert head == "| policy | displaced, 0.08 | light, 0.5 | light, 0.7 | blank cameras |"
    assert flow_row == "| `flow` | 45 %: 9 of 20, 25.8 – 65.8 % | 45 %: 9 of 20, 25.8 – 65.8 % | – | – |"
    assert "| 80 %: 16 of 20, 58.4 – 91.9 %; -0 +7 of 20, p = 0.016 | – | 80 %: 16 of 20" in l1_row
    old = json.loads(Path("results/comparison.json").read_text())
    for row in old["rows"]:
        del row["conditions"]
    Path("results/old.json").write_text(json.dumps(old))
    document.write_text("<!-- table: compared_conditions results/old.json -->\n<!-- end -->\n")
    with pytest.raises(DataError, match=r"old\.json lacks what the table compared_conditions shows.*--compare"):
        report.main(["--params", params, "--tables", str(document)])
    document.write_text("<!-- table: comparisons results/comparison.json -->\n<!-- end -->\n")
    with pytest.raises(DataError, match=r"no table 'comparisons'.*Did you mean 'comparison'"):
        report.main(["--params", params, "--tables", str(document)])
    for damaged in (
        "<!-- table: comparison a.json -->\nProse.\n" + document.read_text(),
        "<!-- table: x -->\n<!-- end -->",
    ):
        document.write_text(damaged)
        with pytest.raises(DataError, match=r"of which \d make a pair"):
            report.main(["--params", params, "--tables", str(document)])
        assert document.read_text() == damaged
    document.write_text("<!-- table: tasks results/comparison.json -->\n<!-- end -->\n")
    with pytest.raises(DataError, match=r"comparison\.json lacks what the table tasks shows"):
        report.main(["--params", params, "--tables", str(document)])


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


def compared(folder: Path, base: dict, name: str, failures: int, steps: int) -> None:
    """Write an evaluation of 20 episodes."""
    records = [record("failure" if i < failures else "success", 0, i) for i in range(20)]
    agent = {"name": "policy", "sampling_steps": steps, "architecture": {"head": "flow", "velocity": "mlp"}}
    (folder / name).mkdir(parents=True)
    tree = {**base, **summary(records), "protocol": {**base["protocol"], "agent": agent}}
    (folder / name / "eval.json").write_text(json.dumps(tree))
    write_records(folder / name / "episodes.jsonl", records)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_success_by_sampling_steps_stands_in_the_comparison_and_then_in_the_report(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    base = json.loads(Path("results/flow/eval.json").read_text())
    for name, failures, steps in (("a-0", 2, 10), ("a-0-steps-1", 12, 1), ("b-0", 1, 10)):
        compared(Path("results/comparison"), base, name, failures, steps)
    Path("runs/a-0").mkdir(parents=True)
    Path("runs/a-0/train.json").write_text(json.dumps({"wall_s": 9.0, "val_straightness": 0.1254}))
    params = str(Path(__file__).parents[2] / "params.yaml")
    places = [f"results/comparison/{name}" for name in ("a-0", "a-0-steps-1", "b-0")]
    compare = ["--params", params, "--compare", *places, "--against"]
    with pytest.raises(DataError, match=r"--against a-1: there is no such evaluation. Did you mean 'a-0'"):
        report.main([*compare, "a-1"])
    report.main([*compare, "a-0", "--record"])
    kept = json.loads(Path("docs/results/quickstart-against-a-0.json").read_text())
    assert [row["name"] for row in kept["rows"]] == ["a-0", "b-0", "a-0-steps-1"], "by success"
    assert kept["rows"][2]["against_first"]["lost"] == 10
    for page in (Path("results/against-a-0.html").read_text(), make(Path.cwd(), monkeypatch)):
        says = Page(page).says()
        # 8 and 18 of 20: Wilson by hand 21.9 to 61.3 and 69.9 to 97.2
        assert "PolicyStraightness (0: straight)1 step10 stepsa-00.12540 % (21.9 – 61.3 %)90 % (69.9 – 97.2 %)" in says
    found = drawn(Path("results/against-a-0.html").read_text(), tmp_path, 390)
    assert (found["over"], found["violations"]) == (0, [])
