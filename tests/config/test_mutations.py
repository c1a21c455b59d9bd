"""Whatever stands in params.yaml: settings that work, or a ConfigError that names the setting. Never a traceback."""

import datetime
import importlib
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Params, load
from pipeline.config.messages import names
from pipeline.errors import ConfigError
from tests import base

SETTINGS = sorted(names())
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 3, 0.5, -0.5, 1e300, 10**9, 10**400, float("inf"), float("-inf"), float("nan")),
    *("", "nonsense", "\x00", "~nobody/here", "3", "no", datetime.date(2026, 1, 1), b"\xff"),
    *([], [[]], [None], ["nonsense", 3], [1, 1], {}, {"a": {"b": [None]}}, {1: 2}, {"libero_spatial": [99]}),
]


def mutated(chance: random.Random, path: Path) -> list[str]:
    """Write a params.yaml with one or two settings replaced; return their names."""
    tree, chosen = base.tree(), chance.sample(SETTINGS, chance.choice((1, 2)))
    for name in chosen:
        *sections, key = name.split(".")
        place: Any = tree
        for section in sections:
            if not isinstance(place.get(section), dict):  # null, or mutated before
                place[section] = {}
            place = place[section]
        place[key] = chance.choice(VALUES)
    path.write_text(yaml.safe_dump(tree))
    return chosen


def test_mutated_settings_load_or_are_named(tmp_path: Path) -> None:
    chance, path, refused = random.Random(0), tmp_path / "params.yaml", 0
    for _ in range(300):
        chosen = mutated(chance, path)
        try:
            assert isinstance(load(path), Params)
        except ConfigError as error:
            refused += 1
            assert any(_told(name, str(error)) for name in chosen), (chosen, str(error))
            assert "should be" not in str(error)
    assert 200 < refused < 300


def _told(name: str, error: str) -> bool:
    """Return whether a setting is named, or, where it was set alone in a section that is null, the others missing."""
    return name in error or (f"{name.rpartition('.')[0]}." in error and " is missing" in error)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["demos", "embed", "train_flow", "export_onnx", "eval_libero", "report"])
def test_a_stage_refuses_mutated_settings_before_it_works(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = importlib.import_module(f"stages.{stage}").main
    monkeypatch.chdir(tmp_path)
    chance, path, tried = random.Random(stage), tmp_path / "params.yaml", 0
    while tried < 50:
        mutated(chance, path)
        try:
            load(path)
        except ConfigError as error:
            tried += 1
            with pytest.raises(ConfigError) as raised:
                main(["--params", str(path)])
            assert str(raised.value) == str(error)
    assert [p.name for p in tmp_path.iterdir()] == ["params.yaml"]
