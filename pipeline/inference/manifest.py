"""What an export is: a directory of ONNX files, and export.json, which says what each of them is and what it holds.

Imports neither torch nor open_clip nor zarr, as `runtime` does not.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from pipeline.errors import DataError
from pipeline.seal import is_sealed, sealed, sha256

FORMAT = "vla-flow-onnx"
VERSION = 2
MANIFEST = "export.json"
POLICY, IMAGE, IMAGE_INT8, TEXT = "policy.onnx", "image.onnx", "image.int8.onnx", "text.onnx"
MERGES = "merges.txt"
"""The text tower's byte pair merges, one a line, in order."""
FILES = (MANIFEST, POLICY, IMAGE, IMAGE_INT8, TEXT, MERGES)
BUNDLE_KEY, ENCODER_KEY = "vla_flow.policy_weights_sha256", "vla_flow.encoder_weights_sha256"
"""Metadata of each graph: whose it is."""
REMEDY = "Export again: python -m stages.export_onnx"


def write(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write export.json, with the digests of the files that `tree["files"]` names and that lie there, and its own."""
    files = {name: {"sha256": sha256((folder / name).read_bytes()), **about} for name, about in tree["files"].items()}
    (folder / MANIFEST).write_text(sealed({"format": FORMAT, "version": VERSION, **tree, "files": files}))


def read(folder: Path) -> dict[str, Any]:
    """Return export.json.

    Raises:
        DataError: it is not there, damaged, or of another format or version.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
        tree = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Export a policy first: python -m stages.export_onnx") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}). {REMEDY}") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or tree.get("version") != VERSION:
        raise DataError(f"{path}: not a {FORMAT} of version {VERSION}. {REMEDY}")
    if not is_sealed(text, tree):
        raise DataError(f"{path}: has changed since it was written. Copy it again, or e{REMEDY[1:]}")
    return tree


def content(folder: Path, tree: Mapping[str, Any], name: str) -> bytes:
    """Return what a file of the export holds, after a look that it is the one which export.json names.

    Raises:
        DataError: it is missing, damaged, or of another policy; both sides are named.
    """
    path = folder / name
    if name not in tree["files"]:
        how = " with --int8" if name == IMAGE_INT8 else ""
        raise DataError(
            f"{folder / MANIFEST}: this export has no {name}. It has: {', '.join(tree['files'])}. Export again{how}"
        )
    try:
        found = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not found or not readable ({error.strerror}). {REMEDY}") from None
    if (digest := sha256(found)) == tree["files"][name]["sha256"]:
        return found
    wanted = tree["policy"]["weights_sha256"]
    if (owner := _owner(found)) and owner != wanted:
        raise DataError(
            f"{path}: is of the policy with weights {owner}; {MANIFEST} beside it is of the policy with weights "
            f"{wanted}. Keep the files of an export together, or e{REMEDY[1:]}"
        )
    raise DataError(
        f"{path}: has changed since it was written: SHA-256 {digest}; {MANIFEST} names {tree['files'][name]['sha256']}."
        f" Copy it again, or e{REMEDY[1:]}"
    )


def session(model: bytes, threads: int) -> ort.InferenceSession:
    """Return a session on the CPU with so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Else the threads of one graph spin on while the next one computes, and take its cores: 86 ms became 54 on two.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _owner(model: bytes) -> str | None:
    """Return the digest of the policy that a graph is of; None where that is not to be made out."""
    try:
        return session(model, 1).get_modelmeta().custom_metadata_map.get(BUNDLE_KEY)
    except Exception:  # damaged in whatever way: ONNX Runtime's own exceptions have no class in common
        return None
