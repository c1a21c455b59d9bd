"""What a GPU makes of this code: the tests that need one, then the benchmarks, each in a process of its own.

    make gpu-check          (python -m benchmarks.gpu [--only PART ...] [--out FILE])

A part that fails or takes too long does not keep the others from running; all take TOTAL_S at most. Writes
benchmarks/results/gpu.json after each part: its figures, or the end of what it said.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from pipeline.compute import cores
from pipeline.files import write_atomic
from pipeline.provenance import cpu_name, versions

PARTS: dict[str, list[str]] = {
    "tests": ["pytest", "-m", "gpu", "-q"],
    "policy": ["benchmarks.policy", "--only", "reference", "chunk", "flow, residual"],
    "train": ["benchmarks.train", "--rounds", "1", "--model", "ViT-B-16"],
    "embed": ["benchmarks.embed"],
    "serve": ["benchmarks.serve", "--requests", "256"],
}
TOTAL_S, LIMIT_S = 480, 240  # of all parts, and of one
SAID = 2000  # characters of what a part that failed said


def main(argv: list[str] | None = None) -> int:
    """Run the parts; return 0 if all went well, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("torch finds no GPU here (make doctor says why). The benchmarks of a CPU: make bench", file=sys.stderr)
        return 1
    properties = torch.cuda.get_device_properties(0)
    machine = {"gpu": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    machine |= {"gpus": torch.cuda.device_count(), "cpu": cpu_name(), "cores": cores()}
    result: dict[str, Any] = {"machine": machine, "versions": versions(), "parts": {}}
    started = perf_counter()
    for name in args.only:
        left = TOTAL_S - (perf_counter() - started)
        result["parts"][name] = found = run(PARTS[name], max(1.0, min(LIMIT_S, left)))
        print(f"{name:8} {'ok' if found['ok'] else 'FAILED'} in {found['seconds']} s", flush=True)
        write_atomic(args.out, json.dumps(result, indent=1) + "\n")
    return 0 if all(found["ok"] for found in result["parts"].values()) else 1


def run(part: list[str], limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Return whether a part went well, its seconds, its figures, and of a failure what it said."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        wanted = [] if part[0] == "pytest" else ["--out", str(out)]
        started = perf_counter()
        command = [sys.executable, "-m", *part, *wanted]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process:
            try:
                said, late = process.communicate(timeout=limit_s)[0], ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its workers, too
                said, late = process.communicate()[0], f"\nit took more than {limit_s:.0f} s"
        ok, said = process.returncode == 0, said + late
        found: dict[str, Any] = {"ok": ok, "seconds": round(perf_counter() - started, 1)}
        if not ok:
            found["said"] = said[-SAID:]
        elif out.exists():
            found["figures"] = json.loads(out.read_text())
        return found


if __name__ == "__main__":
    sys.exit(main())
