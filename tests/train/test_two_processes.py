"""Two real processes: they go on from the same checkpoint, or neither does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT

# Trains; in process 1 the newest checkpoint, where there is one, cannot be read.
TRAIN = """
import sys
from pathlib import Path
from accelerate import Accelerator
from safetensors.torch import save_file
from pipeline.train import checkpoint
from pipeline.train.loop import train
from tests.train.synthetic import ARCH, table
from tests.train.test_loop import CFG

scratch = Path(sys.argv[1])
accelerator = Accelerator(cpu=True)
found, load_state, loaded = checkpoint.checkpoints(scratch), accelerator.load_state, []

def load(path):
    loaded.append(Path(path).name)
    if accelerator.process_index == 1 and path == str(found[-1]):
        raise OSError("stale file handle")
    return load_state(path)

accelerator.load_state = load
network, progress = train(accelerator, table(), ARCH, CFG, scratch)
print("loaded", accelerator.process_index, *loaded, flush=True)
if accelerator.is_main_process:
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, sys.argv[2])
accelerator.end_training()
"""


def launch(folder: Path, out: str) -> str:
    (folder / "train.py").write_text(TRAIN)
    config = str(ROOT / "configs/accelerate/cpu2.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, str(folder / "train.py")]
    done = subprocess.run(
        [*command, str(folder / "run"), str(folder / out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_passed_over_by_both(tmp_path: Path) -> None:
    launch(tmp_path, "whole.safetensors")
    output = launch(tmp_path, "again.safetensors")
    for rank in "01":
        assert f"loaded {rank} step-000000016 step-000000012" in output
    assert "step-000000016: cannot be read (OSError: stale file handle)" in output
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
