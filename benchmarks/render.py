"""What `sim.render: fast` saves and what it changes, and what textures of LIBERO's full size would change.

    python -m benchmarks.render [--images N]

Per suite, task 0 from init state 0, both cameras at 128 pixels. Pictures are compared by the mean difference over
pixels and channels, of 255. Prints a table and writes benchmarks/results/render.json.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suites import milliseconds
from pipeline.compute import cores
from pipeline.files import write_atomic
from pipeline.libero.settings import Sim
from pipeline.libero.sim import simulator as simulators
from pipeline.libero.sim.simulator import CAMERAS, Simulator
from pipeline.libero.suites import SUITES, init_states, tasks
from pipeline.provenance import cpu_name

RESULT = Path(__file__).parent / "results" / "render.json"
FULL = Sim(assets_path=None, render="full", gl="auto", image_size=128, settle_steps=10, seed=0)
DIFFERENT = 20  # of 255, in any channel


def draw(suite: str, sim: Sim, images: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return milliseconds of both cameras and the machine, and the pictures of the first state."""
    task = tasks(suite, [0])[0]
    with Simulator(task, sim) as simulator:
        simulator.reset(init_states(task)[0], sim.seed)
        pictures = simulator.observe().images
        ms = [milliseconds(simulator.observe) for _ in range(images)]
        machine = {k: simulator.info[k] for k in ("gl_used", "renderer", "versions")}
    return {"ms": float(np.median(ms)), "ms_least": min(ms), **machine}, pictures


def compare(suite: str, images: int) -> dict[str, Any]:
    """Measure both qualities, and full quality with textures as large as LIBERO has them."""
    fast, drawn_fast = draw(suite, replace(FULL, render="fast"), images)
    full, drawn_full = draw(suite, FULL, images)
    usual = simulators.TEXELS_PER_PIXEL
    simulators.TEXELS_PER_PIXEL = 4096
    try:
        _, drawn_large = draw(suite, FULL, 1)
    finally:
        simulators.TEXELS_PER_PIXEL = usual
    return {
        "fast_ms": fast["ms"],
        "fast_ms_least": fast["ms_least"],
        "full_ms": full["ms"],
        "full_over_fast": round(full["ms"] / fast["ms"], 1),
        "fast_difference": difference(drawn_full, drawn_fast),
        "fast_pixels_changed": changed(drawn_full, drawn_fast),
        "texture_difference": difference(drawn_large, drawn_full),
        "gl_used": full["gl_used"],
        "renderer": full["renderer"],
        "versions": full["versions"],
    }


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean difference of grey levels per camera."""
    return {c: round(float(np.abs(one[c].astype(int) - other[c]).mean()), 2) for c in CAMERAS}


def changed(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the share of pixels that differ by more than DIFFERENT, per camera."""
    return {c: round(float((np.abs(one[c].astype(int) - other[c]).max(-1) > DIFFERENT).mean()), 4) for c in CAMERAS}


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5, help="rounds of seven pictures of both cameras")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    machine = {"cpu": cpu_name(), "cores": cores(), "load_before": round(os.getloadavg()[0], 1)}
    result: dict[str, Any] = {"machine": machine, "pixel_threshold": DIFFERENT}
    for suite in args.suites:
        result[suite] = found = compare(suite, args.images)
        print(
            f"{suite:15} fast {found['fast_ms']:6.1f} ms   full {found['full_ms']:6.1f} ms   "
            f"mean difference {found['fast_difference']}, by textures {found['texture_difference']}"
        )
    write_atomic(args.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
