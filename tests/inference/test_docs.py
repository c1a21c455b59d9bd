"""docs/deploy.md: what it says in Python runs, and its commands take the arguments that it gives them."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import act, push
from tests.encode import tiny
from tests.imports import ROOT
from tests.inference.make import bundle, observation

TEXT = (ROOT / "docs/deploy.md").read_text()


def test_the_snippet_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register(tmp_path)
    bundle(tmp_path / "runs/flow/policy", horizon=16, n_action_steps=8)
    monkeypatch.chdir(tmp_path)
    (snippet,) = (code for code in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "import Policy\n" in code)
    seen = observation(0, (120, 160))
    names: dict[str, Any] = {**seen, "front": seen["agentview"], "hand": seen["eye_in_hand"]}
    exec(snippet, names)
    assert names["actions"].shape == (16, 7) and np.abs(names["actions"]).max() <= 1


def test_the_commands_are_taken() -> None:
    """tests/stages/test_act.py and test_push.py run them."""
    lines = re.findall(r"(?m)^python -m stages\.(act|push) ([^#\n]*)", TEXT)
    assert len(lines) == 5
    for name, arguments in lines:
        parser = act.arguments() if name == "act" else push.arguments()
        parser.parse_args(shlex.split(arguments))
