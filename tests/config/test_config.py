"""params.yaml is what configs/ compose to, loads strictly, and tells what is wrong with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from cache import schema
from pipeline.config import __main__ as cli
from pipeline.config import from_dict, load
from pipeline.config.compose import compose
from pipeline.config.text import parse
from pipeline.errors import ConfigError
from pipeline.libero.demos import layout
from pipeline.libero.gym_env import STATE_BOUNDS
from pipeline.libero.settings import SUITE_SIZES, Camera
from pipeline.libero.sim.simulator import CAMERAS, DEPTH_CAMERAS
from pipeline.libero.suites import SUITES, tasks
from pipeline.policy.fusion import PROPRIO_DIMS
from pipeline.policy.settings import Proprio
from tests import base

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(p.stem for p in (ROOT / "configs" / "experiment").glob("*.yaml"))


def committed() -> dict:
    return base.tree()


def test_committed_params_are_the_composed_default() -> None:
    assert (ROOT / "params.yaml").read_text() == compose([], ROOT / "configs"), "run: make params"


def test_dvc_composes_the_same_text(tmp_path: Path) -> None:
    from dvc.utils.hydra import compose_and_dump

    target = tmp_path / "params.yaml"
    overrides = ["experiment=libero_spatial", "train_flow.epochs=7"]
    compose_and_dump(str(target), str(ROOT / "configs"), None, "config", str(tmp_path), overrides)
    assert target.read_text() == compose(overrides, ROOT / "configs")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_names_itself(experiment: str) -> None:
    params = from_dict(yaml.safe_load(compose([f"experiment={experiment}"], ROOT / "configs")))
    assert params.experiment == experiment


def test_reference_experiment_has_the_reference_settings() -> None:
    params = from_dict(yaml.safe_load(compose(["experiment=single_task_overfit"], ROOT / "configs")))
    assert (params.demos.source, params.sim.render) == ("official", "full")
    assert (params.embed.encoder.model, params.embed.encoder.pretrained) == ("ViT-B-16-quickgelu", "openai")
    assert len(params.data.tasks["libero_spatial"] or ()) == 1
    train = params.train_flow
    assert (train.batch_size, train.learning_rate) == (2 * 64, 3e-4)
    assert (train.clip_norm, train.epochs) == (1.0, 500)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_flow": {"epohcs": 3}}, r"no setting 'train_flow.epohcs'. Did you mean 'epochs'\?"),
        ({"embed": {"encoder": {"modle": "x"}}}, r"'embed.encoder.modle'. Did you mean 'model'\?"),
        ({"trian_flow": {}}, r"no setting 'trian_flow'. Did you mean 'train_flow'\?"),
        ({"policy.head": "l1"}, "'policy.head' is no key: a setting stands below its section"),
        ({"train_flow": {"epochs": "many"}}, 'train_flow.epochs is "many"; it must be a whole number'),
        ({"train_flow": {"epochs": True}}, "train_flow.epochs is true; it must be a whole number"),
        ({"train_flow": {"seed": -1}}, "train_flow.seed is -1; it must be greater than or equal to 0"),
        ({"train_flow": {"learning_rate": float("inf")}}, "learning_rate is Infinity; it must be a finite number"),
        ({"train_flow": {"learning_rate": float("nan")}}, "learning_rate is NaN; it must be a finite number"),
        ({"train_flow": {"batch_size": 10**9}}, "batch_size is 1000000000; it must be less than or equal to 65536"),
        ({"train_flow": {"encoder": 3}}, "train_flow.encoder is 3; it must be settings by name"),
        ({"sim": {"image_size": 100_000}}, "sim.image_size is 100000; it must be less than or equal to 1024"),
        ({"sim": {"render": "pretty"}}, r'sim.render is "pretty"; it can be fast or full\.'),
        ({"policy": {"head": "flw"}}, r"flow, diffusion, l1, l2, cvae or tokens\. Did you mean 'flow'\?"),
        ({"policy": {"cameras": ["front"]}}, "'front'; it can have agentview, eye_in_hand, agentview_depth"),
        (
            {"embed": {"cameras": ["wrist"]}},
            "embed.cameras has 'wrist'; it can have agentview, eye_in_hand, agentview_d",
        ),
        ({"embed": {"cameras": "agentview"}}, r'embed.cameras is "agentview"; it must be a list, such as \[a, b\]'),
        ({"train_flow": {"horizon": 8}}, r"no setting 'train_flow.horizon'. Did you mean 'policy.horizon'\?"),
        ({"embed": {"cameras": ["agentview"]}}, "policy.cameras has 'eye_in_hand'.*add it there"),
        ({"policy": {"n_action_steps": 17}}, "policy.n_action_steps 17 is not between 1 and policy.horizon 16"),
        ({"policy": {"augmented_views": True}}, "augmented_views is true, but embed.views is 1: set it to 2 or more"),
        (
            {"policy": {"augmented_views": True}, "embed": {"views": 2}, "train_flow": {"encoder": {"tune": "lora"}}},
            "tune is lora, which reads frames",
        ),
        ({"embed": {"shard_rows": 1000, "chunk_rows": 300}}, "1000 is not a multiple"),
        ({"demos": {"source": "path"}}, "demos.path is null"),
        ({"demos": {"source": "official"}}, "use 'action'"),
        (
            {"demos": {"source": "official"}, "train_flow": {"action": "action"}, "policy": {"proprio": ["ee_wrench"]}},
            "neither depth nor ee_wrench",
        ),
        ({"embed": {"cameras": ["agentview", "eye_in_hand", "agentview_depth"]}}, "but demos.depth is false"),
        (
            {"data": {"tasks": {"libero_goal": [1]}}},
            r"data.tasks.libero_goal is \[1\], but .*\(compose: ~data\.tasks\.libero_goal\)$",
        ),
        ({"data": {"tasks": {"libero_spatial": [10]}}}, "libero_spatial has 10; ids go from 0 to 9"),
        ({"data": {"suites": ["libero_spacial"]}}, "Did you mean 'libero_spatial'"),
        ({"compute": {"scheduler": "cluster"}}, r"tcp://host:port"),
        ({"train_flow": {"val_fraction": 1.0}}, "val_fraction"),
        ({"train_flow": {"encoder": {"lora_rank": 0}}}, "lora_rank is 0; it must be greater than 0"),
        ({"train_flow": {"microbatch_size": 0}}, "train_flow.microbatch_size is 0; it must be greater than 0"),
        ({"compute": {"workers": 0}}, "compute.workers is 0; it must be greater than 0"),
        ({"data": {"suites": [], "tasks": {}}}, "data.suites is empty"),
        ({"data": {"tasks": {"libero_spatial": []}}}, "libero_spatial is empty; name tasks"),
        ({"data": {"tasks": {"libero_spatial": [0, 0]}}}, "names a task twice"),
        ({"demos": {"first_init_state": -1}}, "demos.first_init_state is -1"),
        ({"eval_libero": {"conditions": {"blank_camera": None}}}, "'blank_camera'. Did you mean 'blank_cameras'"),
        ({"eval_libero": {"conditions": {"displaced": None}}}, "displaced is None; give metres"),
        ({"eval_libero": {"conditions": {"blank_cameras": 2}}}, "blank_cameras is 2.0; it takes no number"),
        (
            {"eval_libero": {"conditions": {"latency": "x"}}},
            'conditions.latency is "x"; it must be a number\n.*be a list',
        ),
        ({"eval_libero": {"conditions": {"latency": [0.1, 0.1]}}}, "give seconds .*, each once and above 0"),
        ({"eval_libero": {"conditions": {"displaced+dark": 0.1}}}, "'displaced\\+dark'"),
        ({"eval_libero": {"conditions": {"displaced+light": 0.1}}}, "one number for two things"),
        ({"eval_libero": {"conditions": {"displaced+blank_cameras": None}}}, "is None; give metres"),
        ({"eval_libero": {"conditions": {"other_episode+blank_cameras": None}}}, "nothing of another episode is seen"),
        ({"eval_libero": {"condition_episodes": 0}}, "condition_episodes is 0; it must be greater than 0"),
        ({"eval_libero": {"n_action_steps": 0}}, "eval_libero.n_action_steps is 0; it must be greater than 0"),
        (
            {"eval_libero": {"videos_per_task": -3}},
            "eval_libero.videos_per_task is -3; it must be greater than or equal to 0",
        ),
        (
            {"demos": {"trajectory_diversity": 5.0}},
            "demos.trajectory_diversity is 5.0; it must be less than or equal to 1",
        ),
        ({"sim": {"assets": "official"}}, "no setting 'sim.assets'"),
        ({"policy": {"time_dim": 255}}, "time_dim is 255; it must be a multiple of 2"),
        ({"policy": {"head": "tokens"}}, "policy.head tokens clips or bins.*standardise_actions: false"),
        (
            {"policy": {"head": "diffusion", "standardise_actions": False, "sampling_steps": 30}},
            "policy.sampling_steps is 30; policy.head diffusion takes a divisor of 100",
        ),
        (
            {"policy": {"head": "l1"}, "train_flow": {"teacher": "x"}},
            "teacher x needs policy.head flow, which is l1",
        ),
        ({"pretrain_clip": {"lock_image": True}}, "pretrained is null: the image tower would stay random"),
        ({"demos": {"source": "path", "path": "data/demos/mine"}}, "where the stage writes"),
        ({"demos": {"source": "official"}, "train_flow": {"action": "action"}}, "Use sim=full"),
    ],
)
def test_wrong_values_are_refused_with_the_remedy(change: dict, message: str) -> None:
    def merge(base: dict, other: dict) -> dict:
        for key, value in other.items():
            base[key] = merge(base[key], value) if isinstance(value, dict) and key in base else value
        return base

    with pytest.raises(ConfigError, match=message):
        from_dict(merge(committed(), change))


def test_missing_key_names_itself() -> None:
    tree = committed()
    del tree["train_flow"]["seed"]
    with pytest.raises(ConfigError, match=r"train_flow\.seed is missing. Make the file again: make params"):
        from_dict(tree)


def test_the_file_is_read_as_yaml_1_2(tmp_path: Path) -> None:
    """As DVC reads it: PyYAML takes 3e-4 for text, and no for false."""
    path, text = tmp_path / "params.yaml", (ROOT / "params.yaml").read_text()
    for old, new in (("learning_rate: 0.0003", "learning_rate: 3e-4"), ("clip_norm: 1.0", "clip_norm: 1")):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    train = load(path, {"train_flow.precision": parse("no", "here")}).train_flow
    assert (train.learning_rate, train.clip_norm, train.precision) == (3e-4, 1.0, "no")
    assert [parse(text, "") for text in ("1.5", ".5", "-1e+3", ".inf", "1e", "yes", "true", "12")] == (
        [1.5, 0.5, -1000.0, float("inf"), "1e", "yes", True, 12]
    )


def test_a_setting_that_is_there_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("sim:\n  seed: 0\n  gl: auto\n  seed: 1\n")
    with pytest.raises(ConfigError, match=r"params.yaml: seed is there twice, on lines 2 and 4; delete one"):
        load(path)


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: not found"):
        load(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        load(broken)
    broken.write_text("just text")
    with pytest.raises(ConfigError, match="holds str"):
        load(broken)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=libero_spatail", "experiment has no option 'libero_spatail'. Did you mean 'libero_spatial'"),
        ("experiment=3", "experiment has no option '3'. Known: libero_spatial, own_data, quickstart"),
        ("polici=chunk", "no group 'polici'. Did you mean 'policy'"),
        ("train_flow.epochz=3", "no setting 'train_flow.epochz'. Did you mean 'epochs'"),
        ("+train_flow.epochz=3", "no setting 'train_flow.epochz'. Did you mean 'epochs'"),
        ("eval_libero.horizon=3", "no setting 'eval_libero.horizon'. Did you mean 'policy.horizon'"),
        ("eval_libero.conditions.light=0.5", r"not there yet: write \+eval_libero.conditions.light=0.5"),
        ("train_flow.epochs", "is not NAME=VALUE"),
        ("policy.head=flaw", "it can be flow, diffusion, l1, l2, cvae or tokens. Did you mean 'flow'"),
        ("data.tasks.libero_spatial=[11]", "ids go from 0 to 9"),
        ("data.suites=[libero_goal]", r"\[0\], but data.suites is .* take the entry out \(compose: ~data.tasks.libero"),
        ("+data.tasks.elsewhere=[3]", r"data.tasks.elsewhere is \[3\], but data.suites is"),
        ("~data.tasks.libero_spatial", r"no entry 'libero_spatial': write libero_spatial: null for .* \+data\.tasks"),
        (
            "~eval_libero.conditions.blank_cameras",
            r"or it is null, .*: write eval_libero.conditions.blank_cameras=0 ~eval",
        ),
        ("embed.encoder.model=ViT-B-32", "embed.grid.size is 8, but ViT-B-32 has 7 x 7 patches: use 1 or 7"),
    ],
)
def test_compose_says_what_to_write_instead(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([override], ROOT / "configs")


def test_a_condition_is_taken_out_as_the_message_says() -> None:
    name = "eval_libero.conditions.blank_cameras"
    assert from_dict(parse(compose([f"{name}=0", f"~{name}"], ROOT / "configs"), "")).eval_libero.conditions == {}


def test_of_two_overrides_the_one_that_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["sim.rendr=full", "demos.path=/x"], ROOT / "configs")
    assert str(caught.value).endswith("no setting 'sim.rendr'. Did you mean 'render'?")


@pytest.mark.parametrize(
    ("overrides", "tasks_of"),
    [
        (["data=libero_spatial", "data.suites=[libero_goal,libero_10]"], dict.fromkeys(SUITES)),
        (["~data.tasks.libero_spatial", "data.suites=[libero_goal]"], dict.fromkeys({*SUITES} - {"libero_spatial"})),
        (["experiment=own_data", "data.suites=[mine]", "+data.tasks.mine=null"], {"own": None, "mine": None}),
    ],
)
def test_another_suite_takes_one_word(overrides: list[str], tasks_of: dict) -> None:
    assert from_dict(parse(compose(overrides, ROOT / "configs"), "")).data.tasks == tasks_of


@pytest.mark.parametrize(("model", "side"), [("openai_b16", 7), ("openai_l14", 8), ("seeded", 7), ("libero_clip", 8)])
def test_any_encoder_of_configs_has_a_grid_for_the_default_policy(model: str, side: int) -> None:
    params = from_dict(parse(compose([f"embed={model}"], ROOT / "configs"), ""))
    assert params.policy.features == "grid"
    assert params.embed.grid is not None
    assert params.embed.grid.size == side


def test_command_tells_which_values_of_an_option_the_experiment_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    asked = ["eval_libero=protocol", "eval_libero.condition_episodes=null", "embed=openai_b16", "embed.grid=null"]
    asked += ["policy=chunk", "demos=official", "sim=full", "train_flow.action=action"]
    cli.main(["compose", *asked, "--output", str(tmp_path / "params.yaml")])
    assert capsys.readouterr().err == (
        "note: eval_libero.episodes is 20 by experiment quickstart, not 50 as eval_libero=protocol has it. To have "
        "that, add eval_libero.episodes=50\n"
    )


def test_help_of_compose_lists_groups_and_options(capsys: pytest.CaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert "compose experiment=libero_spatial" in text
    assert "policy        chunk, patch_tokens, reference" in text


def test_sizes_of_suites_are_libero_s() -> None:
    assert {suite: len(tasks(suite)) for suite in SUITES} == SUITE_SIZES


def test_command_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    target = tmp_path / "params.yaml"
    cli.main(["compose", "experiment=libero_spatial", "train_flow.epochs=7", "--output", str(target)])
    params = load(target)
    assert (params.experiment, params.train_flow.epochs) == ("libero_spatial", 7)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_its_files(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes == {"cpu2": 2, "gpu2": 2, "gpu8": 8, "nodes2": 16}[path.stem]
    assert config.num_machines == (2 if path.stem == "nodes2" else 1)


def changed(tmp_path: Path, **sections: dict) -> Path:
    tree = yaml.safe_load(compose([], ROOT / "configs"))
    for section, values in sections.items():
        tree[section] |= values
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_setting_can_be_replaced_by_name(tmp_path: Path) -> None:
    path = changed(tmp_path)
    assert load(path, {"train_flow.seed": 7, "policy.head": "l1"}).policy.head == "l1"
    assert load(path).policy.head == "flow"
    with pytest.raises(ConfigError, match=r"with policy\.haed=l1: no setting 'policy\.haed'. Did you mean 'head'\?"):
        load(path, {"policy.haed": "l1"})
    with pytest.raises(ConfigError, match=r"with .*policy\.head diffusion clips"):
        load(path, {"policy.head": "diffusion"})


def test_a_policy_to_compare_is_the_default_but_for_what_it_names(tmp_path: Path) -> None:
    policies = {"small": {"policy.head_width": 8}, "flow": {}}
    path = changed(tmp_path, comparison={"policies": policies, "seeds": [0, 1], "against": ["small-1"]})
    base, small = load(path), load(path, {"train_flow.seed": 1}, variant="small")
    assert (small.policy.head_width, small.train_flow.seed) == (8, 1)
    assert replace(small, policy=base.policy, train_flow=base.train_flow) == base
    with pytest.raises(ConfigError, match=r"no 'smal'. Did you mean 'small'"):
        load(path, variant="smal")


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        ({"policies": {"a": {"embed.views": 2}}, "seeds": [0]}, r"comparison\.policies\.a changes embed\.views"),
        (
            {"policies": {"a": {"policy.nothing": 2}}, "seeds": [0]},
            r"comparison\.policies\.a: no setting 'policy\.nothing'",
        ),
        (
            {"policies": {"a": {"policy.condition_dim": 0}}, "seeds": [0]},
            r"comparison\.policies\.a: policy\.condition_dim is 0",
        ),
        ({"policies": {"a-b": {}}, "seeds": [0]}, r"'a-b'; use letters"),
        ({"policies": {"a": {}}}, r"comparison\.seeds is empty"),
        ({"policies": {"a": {"train_flow.seed": 1}}, "seeds": [0]}, r"name seeds in comparison\.seeds"),
        ({"policies": {"a": {}}, "seeds": [0], "by_steps": ["b"]}, r"by_steps has 'b'"),
        (
            {"policies": {"a": {"policy.head": "l1"}}, "seeds": [0], "by_steps": ["a"], "sampling_steps": [3]},
            r"by_steps a, 3 steps: policy\.head l1 takes none",
        ),
        (
            {
                "policies": {"a": {"policy.head": "diffusion", "policy.standardise_actions": False}},
                **{"seeds": [0], "by_steps": ["a"], "sampling_steps": [3]},
            },
            r"comparison\.by_steps a, 3 steps: policy\.sampling_steps is 3; policy\.head diffusion",
        ),
        ({"policies": {"a": {}}, "seeds": [0], "against": ["a-1"]}, r"against has 'a-1', no policy-seed.*'a-0'"),
        ({"sampling_steps": [0]}, r"sampling_steps.0 is 0; it must be greater"),
    ],
)
def test_a_comparison_that_cannot_work_is_refused(tmp_path: Path, comparison: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(changed(tmp_path, comparison=comparison))


COMPARISONS = sorted(p.stem for p in (ROOT / "configs" / "comparison").glob("*.yaml"))


@pytest.mark.parametrize(
    ("experiment", "comparison"),
    [(e, c) for e in ("quickstart", "spatial_scripted") for c in COMPARISONS if (e, c) != ("quickstart", "tasks")],
)
def test_every_comparison_composes(experiment: str, comparison: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(compose([f"experiment={experiment}", f"comparison={comparison}"], ROOT / "configs"))
    for name in load(path).comparison.policies:
        assert load(path, variant=name).experiment == experiment


def test_the_only_task_is_not_held_out() -> None:
    with pytest.raises(ConfigError, match=r"held_out_tasks\.libero_spatial \[8, 9\] must be some, not all, of data"):
        compose(["experiment=quickstart", "comparison=tasks"], ROOT / "configs")


def test_all_that_deal_with_cameras_and_signals_know_the_same_ones() -> None:
    cameras, signals = set(get_args(Camera)), set(get_args(Proprio))
    assert cameras == {*CAMERAS, *DEPTH_CAMERAS} == set(layout.IMAGE_KEYS | layout.DEPTH_KEYS)
    assert signals == set(PROPRIO_DIMS) == set(STATE_BOUNDS)
    widths = schema.LOWDIM_WIDTHS | schema.OPTIONAL_WIDTHS
    assert PROPRIO_DIMS == {name: len(STATE_BOUNDS[name]) for name in signals} == {n: widths[n] for n in signals}
    assert layout.OPTIONAL.keys() == schema.OPTIONAL_WIDTHS.keys()
