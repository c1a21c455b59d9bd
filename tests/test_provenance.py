"""What names an artifact's code: it changes with what the code does, and with nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import provenance

SOURCE = '''"""A room."""

LIMIT = 3
"""Of what is counted."""


def count(x: int, *, by: str = "a") -> int:
    """Return it."""
    # why
    return x + LIMIT
'''
Digest = Callable[[str], str]


def test_a_commands_secrets_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["ws://me:secret@h:1/p?key=secret", "--url=wss://secret@h#secret", "hf://user/name@revision", "a@b?c"]
    monkeypatch.setattr("sys.argv", ["/bin/stage.py", *given])
    kept = ["stage.py", "ws://h:1/p", "--url=wss://h", "hf://user/name@revision", "a@b?c"]
    assert provenance.provenance()["argv"] == kept


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Digest:
    """Return a function that gives the digest of a room with this source in it."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))

    def of(source: str, name: str = "module.py") -> str:
        shutil.rmtree(tmp_path / "room", ignore_errors=True)
        (tmp_path / "room").mkdir()
        (tmp_path / "room" / name).write_text(source)
        provenance.code_digest.cache_clear()
        return provenance.code_digest("room")

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# why", "# because"),
        ("    # why\n", ""),
        ('"""Return it."""', '"""Return the sum."""'),
        ('    """Return it."""\n', ""),
        ('"""A room."""\n', ""),
        ('"""Of what is counted."""\n', ""),
        ("x + LIMIT", "(x\n      + LIMIT)"),
    ],
)
def test_comments_docstrings_and_layout_are_no_code(digest: Digest, old: str, new: str) -> None:
    assert old in SOURCE
    assert digest(SOURCE.replace(old, new, 1)) == digest(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("x + LIMIT", "x - LIMIT"), ("= 3", "= 4"), ("= 3", "= 3.0"), ('"a"', '"b"'), ("*, by", "by"), ("return x", "x")],
)
def test_what_computes_something_else_is_other_code(digest: Digest, old: str, new: str) -> None:
    assert old in SOURCE
    assert digest(SOURCE.replace(old, new, 1)) != digest(SOURCE)


def test_names_and_files_of_other_kinds_count_as_they_are(digest: Digest) -> None:
    assert digest(SOURCE, "other.py") != digest(SOURCE)
    assert digest("{}", "data.json") != digest("{ }", "data.json")
