"""The small CLIP, and an export of a policy on it, for all tests of this folder."""

from pathlib import Path

import pytest

from pipeline.encode.clip import ClipEncoder
from pipeline.inference.export import export
from tests.encode import tiny
from tests.inference import exports


@pytest.fixture(scope="package")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    """The encoder, with pooled features. Nobody changes it."""
    tiny.register(tmp_path_factory.mktemp("models"))
    return exports.encoder()


@pytest.fixture(scope="package")
def exported(clip: ClipEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a bundle in policy/, and its export in onnx/."""
    folder = tmp_path_factory.mktemp("exported")
    bundle = exports.policy(clip, folder / "policy")
    export(bundle, clip, [], folder / "onnx", int8=True)
    return folder
