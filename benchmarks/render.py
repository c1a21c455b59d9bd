"""What `sim.render: fast` saves, and how many pixels it changes.

Usage: python -m benchmarks.render [--assets-path DIR] [--images N]
Prints a table and writes benchmarks/results/render.json. Without a path it measures the embedded assets only.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.params import Sim
from pipeline.libero.simulator import CAMERAS, Simulator
from pipeline.libero.suites import init_states, tasks

RESULT = Path(__file__).parent / "results" / "render.json"
DIFFERENT = 20  # of 255, in any channel


def measure(sim: Sim, images: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the timings of one quality, per camera the median in ms, and the pictures of the first state."""
    task = tasks("libero_spatial", [0])[0]
    row = init_states(task)[0]
    timings: dict[str, Any] = {"ms_per_image": {}}
    pictures = {}
    for camera in CAMERAS:
        with Simulator(task, sim, (camera,)) as simulator:
            simulator.reset(row, sim.seed)
            pictures[camera] = simulator.observe().images[camera]
            timings["ms_per_image"][camera] = median_ms(simulator.observe, images)
            timings["ms_per_reset"] = median_ms(lambda s=simulator: s.reset(row, sim.seed), 5)
            timings["ms_per_step"] = median_ms(lambda s=simulator: s.step(np.zeros(7)), 20)
            timings["ms_first_image_after_reset"] = median_ms(simulator.observe, 1)
            timings["machine"] = {k: simulator.info[k] for k in ("gl_used", "renderer", "versions")}
    return timings, pictures


def median_ms(function: Any, times: int) -> float:
    elapsed = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        elapsed.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(elapsed)), 1)


def compare(sim: Sim, images: int) -> dict[str, Any]:
    """Measure both qualities and the share of pixels in which they differ."""
    full, full_pictures = measure(replace(sim, render="full"), images)
    fast, fast_pictures = measure(replace(sim, render="fast"), images)
    machine = full.pop("machine")
    fast.pop("machine")
    changed, speedup = {}, {}
    for camera in CAMERAS:
        difference = np.abs(full_pictures[camera].astype(int) - fast_pictures[camera]).max(-1)
        changed[camera] = round(float((difference > DIFFERENT).mean()), 4)
        speedup[camera] = round(full["ms_per_image"][camera] / fast["ms_per_image"][camera], 1)
    return {"full": full, "fast": fast, "speedup": speedup, "share_of_pixels_changed": changed, **machine}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets-path", help="a copy of LIBERO's own assets")
    parser.add_argument("--images", type=int, default=10, help="per camera and quality")
    args = parser.parse_args(argv)
    sims = {"embedded": Sim("embedded", None, "full", "auto", 128, 10, 7)}
    if args.assets_path:
        sims["official"] = replace(sims["embedded"], assets="official", assets_path=args.assets_path)
    result: dict[str, Any] = {
        "scene": "libero_spatial task 0, 128x128",
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "pixel_threshold": DIFFERENT,
    }
    for name, sim in sims.items():
        result[name] = found = compare(sim, args.images)
        for camera in CAMERAS:
            full, fast = (found[q]["ms_per_image"][camera] for q in ("full", "fast"))
            share = found["share_of_pixels_changed"][camera]
            print(f"{name:9} {camera:12} full {full:6.1f} ms   fast {fast:6.1f} ms   {share:.1%} of pixels changed")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
