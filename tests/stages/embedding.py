"""What the tests of the embedding stage share: small settings, and a look at what came out."""

import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.libero.suites import tasks
from tests import base
from tests.encode import tiny

ROOT = Path(__file__).parents[2]
SUITE = "libero_spatial"
TASKS = [0, 3]
LENGTHS = [20, 33, 2, 61]
IMAGES = 2 * len(TASKS) * sum(n - 1 for n in LENGTHS)  # of two cameras, with obs_shift 1


def demonstrations(folder: Path, lengths: list[int] = LENGTHS) -> None:
    """Make open_clip know the tiny encoder, and write demonstrations below a folder."""
    tiny.register(folder)
    for task in tasks(SUITE, TASKS):
        tiny.demonstrations(folder / "demos", task, lengths)


def settings(folder: Path, scheduler: str = "serial", workers: int | None = None, **embed: object) -> Path:
    """Write params.yaml: the repository's, with a tiny encoder and small shards."""
    tree = base.tree()
    tree["data"] = {"suites": [SUITE], "tasks": {SUITE: TASKS}}
    tree["embed"] |= {"shard_rows": 32, "chunk_rows": 16, "batch_size": 12, **embed}
    tree["embed"]["encoder"] = {"model": tiny.MODEL, "pretrained": "seeded", "seed": 0, "precision": "fp32"}
    tree["compute"] = {"scheduler": scheduler, "workers": workers, "threads_per_worker": 1, "tls": None}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def arguments(base: Path, folder: Path, demos: Path | None = None, **options: object) -> list[str]:
    """Return argv that reads the demonstrations of `base` and writes below `folder`."""
    folder.mkdir(exist_ok=True)
    params = settings(folder, **options)  # type: ignore[arg-type]
    paths = {"params": params, "demos": demos or base / "demos", "out": folder / "out", "scratch": folder / "scratch"}
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


def store(folder: Path) -> Path:
    """Return where the store is, or will be."""
    return folder / "out" / f"{SUITE}.zarr"


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of the store."""
    root = store(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def took(folder: Path) -> dict[str, Any]:
    """Return what the last build says it took."""
    return json.loads((folder / "scratch" / f"{SUITE}.json").read_text())["took"]
