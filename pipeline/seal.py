"""JSON files that are refused once they have changed: each holds its own SHA-256, and has one form that it can have."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"
"""The entry with the digest of all others."""


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sealed(tree: Mapping[str, Any]) -> str:
    """Return the text of a file that holds `tree` and its seal."""
    plain = json.loads(json.dumps(tree))
    return _text({**plain, SEAL: _digest(plain)})


def is_sealed(text: str, tree: Mapping[str, Any]) -> bool:
    """Return whether a file is as it was written. `tree` is what `text` holds; the order of entries is free."""
    return text == _text(tree) and tree.get(SEAL) == _digest({k: v for k, v in tree.items() if k != SEAL})


def _digest(tree: Mapping[str, Any]) -> str:
    return sha256(json.dumps(tree, sort_keys=True).encode())


def _text(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2) + "\n"
