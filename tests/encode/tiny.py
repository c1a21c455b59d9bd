"""A CLIP small enough to build and run in milliseconds, and demonstrations to feed it."""

import json
from pathlib import Path

import open_clip

from pipeline.encode.settings import EncoderParams
from pipeline.libero.demos.read import demo_file
from pipeline.libero.demos.write import write_demos
from pipeline.libero.settings import Sim
from pipeline.libero.suites import Task
from tests.libero.synthetic import make_episode

MODEL = "tiny-clip"
PARAMS = EncoderParams(MODEL, "seeded", 0, "fp32")
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SIM = Sim(None, "fast", "auto", 24, 10, 0)


def register(folder: Path) -> None:
    """Make open_clip know `tiny-clip` and `tiny-clip-quickgelu`, from files in `folder`."""
    for name, extra in ((MODEL, {}), (f"{MODEL}-quickgelu", {"quick_gelu": True})):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**CONFIG, **extra}))
        open_clip.add_model_config(path)


def demonstrations(root: Path, task: Task, lengths: list[int]) -> None:
    """Write one demonstration file."""
    episodes = [make_episode(n, 100 * task.id + i, size=SIM.image_size) for i, n in enumerate(lengths)]
    write_demos(demo_file(root, task), task, episodes, SIM)
