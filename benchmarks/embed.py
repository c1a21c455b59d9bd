"""What the embedding stage costs beside the encoder.

    python -m benchmarks.embed [--quick] [--out FILE]

Made-up demonstrations of 128-pixel frames, and in one run:

- the bare encoder on batches that are prepared already against the build end to end (reading HDF5, resizing, encoding,
  writing, fsync, verifying), by turns, for ViT-B-32 and for the smallest encoder in use, or on a GPU for ViT-B-16;
- on a CPU, two local workers against one, from when each may have ended a unit: without the time that Python takes to
  start;
- the peak memory of a build of n and of 4 n frames, with an encoder that costs nothing.

One thread per process. Writes benchmarks/results/embed.json.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import schema, units
from cache.build import build
from cache.ledger import Receipt
from cache.plan import Plan
from pipeline.compute import Compute, cores, map_unordered
from pipeline.embed.settings import Embed
from pipeline.embed.worker import CONCURRENCY, Embedder, MakeEmbedder, shared_encoder
from pipeline.encode.clip import default_batch_size, pick_device, resolve_precision
from pipeline.encode.preprocess import Preprocess
from pipeline.encode.settings import EncoderParams
from pipeline.libero.demos.read import Demo, demo_file, read, scan
from pipeline.libero.demos.write import Episode, Origin, write_demos
from pipeline.libero.settings import Camera, Sim
from pipeline.libero.suites import tasks
from pipeline.provenance import cpu_name, versions

SMALLEST = "ViT-S-32"
CAMERAS: tuple[Camera, ...] = ("agentview", "eye_in_hand")
SUITE = "libero_spatial"
SIDE = 128
SIM = Sim(assets_path=None, render="fast", gl="auto", image_size=SIDE, settle_steps=10, seed=0)
SHARD_ROWS = {"cpu": 256, "cuda": 4096}  # configs/embed has the latter for OpenAI's models, which are for a GPU
STEPS = 128  # of a demonstration
SERIAL = Compute("serial", None, 1)
MODELS = {"cpu": {"ViT-B-32": 64, SMALLEST: 192}, "cuda": {"ViT-B-16": 16384}}
"""What is measured on which device, and the rows of each."""


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the work: to try it out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/embed.json"))
    args = parser.parse_args(argv)
    part = 8 if args.quick else 1
    torch.set_num_threads(1)
    device = pick_device()
    folder = Path(tempfile.mkdtemp(prefix="bench-embed-"))
    try:
        result = {
            "machine": {
                "cpu": cpu_name(),
                "cores": cores(),
                "device": device,
                "threads": 1,
                "load": os.getloadavg()[0],
            },
            "versions": versions(),
            "encoders": {
                model: share_of_bare(folder / model, model, device, rows=rows // part)
                for model, rows in MODELS[torch.device(device).type].items()
            },
            "memory": memory(folder / "memory", 500 // part),
        }
        if device == "cpu":  # a GPU has one worker
            rounds = {"batches": 4, "rounds": 1} if args.quick else {"batches": 8, "rounds": 2}
            result["workers"] = speedup(folder / "workers", device, **rounds)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def share_of_bare(folder: Path, model: str, device: str, rows: int, rounds: int = 3) -> dict[str, Any]:
    """Return images per second of the encoder alone, of the build, and the ratio."""
    shard = SHARD_ROWS[torch.device(device).type]
    size = min(default_batch_size(model, device, shard), rows)
    factory, demos = job(folder, model, device, rows, size)
    encoder = shared_encoder(factory.settings.encoder, device, None, size)
    shown = [read(demo, CAMERAS[:1], 0, demo.length)["images"][CAMERAS[0]] for demo in demos[: -(-size // STEPS)]]
    frames = np.concatenate(shown)[:size]
    batches = [encoder.prepare(frames), encoder.prepare(frames[::-1])]
    encoder.forward(batches[0])
    images = rows * len(CAMERAS)
    bare, whole = [], []
    for turn in range(rounds):
        bare.append(seconds(lambda: [encoder.forward(batches[i % 2]) for i in range(images // size)]))
        whole.append(seconds(partial(make, folder / str(turn), plan(demos, factory.fields, shard), factory, SERIAL)))
    shares = [statistics.median(b[clock] / w[clock] for b, w in zip(bare, whole, strict=True)) for clock in range(2)]
    return {
        "precision": encoder.precision,
        "batch": size,
        "images": images,
        "bare_encoder_images_per_s": [round(images / wall, 2) for wall, _ in bare],
        "end_to_end_images_per_s": [round(images / wall, 2) for wall, _ in whole],
        "share_of_bare": round(shares[0], 3),
        "share_of_bare_in_processor_time": round(shares[1], 3),  # where others are at work on the machine too
    }


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Return the wall and the processor time of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def speedup(folder: Path, device: str, batches: int, rounds: int) -> dict[str, Any]:
    """Return images per second of one and of two local workers, and the ratio."""
    size = 32
    factory, demos = job(folder, SMALLEST, device, batches * size, size)
    made = plan(demos, factory.fields, shard_rows=size)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in rates:
            ends: list[float] = []

            def report(receipt: Receipt, resumed: bool, ends: list[float] = ends) -> None:
                ends.append(time.perf_counter())

            make(folder / f"{turn}-{workers}", made, factory, Compute("local", workers, 1), report)
            later = (len(ends) - workers) * size * len(CAMERAS)
            rates[workers].append(later / (ends[-1] - ends[workers - 1]))
    return {
        "model": SMALLEST,
        "images": batches * size * len(CAMERAS),
        "one_worker_images_per_s": [round(x, 2) for x in rates[1]],
        "two_workers_images_per_s": [round(x, 2) for x in rates[2]],
        "speedup": round(statistics.median(b / a for a, b in zip(rates[1], rates[2], strict=True)), 3),
    }


def memory(folder: Path, rows: int) -> dict[str, Any]:
    """Return the peak memory of builds of `rows` and of four times as many rows, each in a process of its own."""
    peaks: dict[int, tuple[float, float]] = {}
    for n in (rows, 4 * rows):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(write, folder / str(n), n).result()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks[n] = pool.submit(peak_mib, folder / str(n)).result()
    images = {n: n * len(CAMERAS) for n in peaks}
    return {
        "mib_before_the_build": {str(images[n]): round(before, 1) for n, (before, _) in peaks.items()},
        "peak_mib_of_the_build": {str(images[n]): round(peak, 1) for n, (_, peak) in peaks.items()},
        "mib_of_the_frames": {str(images[n]): round(images[n] * SIDE * SIDE * 3 / 2**20, 1) for n in peaks},
        "ratio": round(peaks[4 * rows][1] / peaks[rows][1], 3),
    }


def peak_mib(folder: Path) -> tuple[float, float]:
    """Build from the demonstrations in a folder; return resident memory in MiB before, and its peak (Linux only)."""
    demos = scan(folder, SUITE, [tasks(SUITE, [0])[0]])[0]
    fields = schema.fields(CAMERAS, 1, 3, ["expert_action"])
    factory = MakeCheapEmbedder(settings(EncoderParams(SMALLEST, "seeded", 0, "fp32"), 64), {}, fields)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the imports
    before = status_mib("VmRSS")
    make(folder / "build", plan(demos, fields, shard_rows=128), factory, SERIAL)
    return before, status_mib("VmHWM")


def status_mib(name: str) -> float:
    """Return an entry of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


class Mean:
    """An encoder that does all but encode."""

    preprocess = Preprocess(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def prepare(self, frames: np.ndarray, light: np.ndarray | None) -> torch.Tensor:
        """Resize and normalise."""
        return self.preprocess(torch.from_numpy(frames))

    def submit(self, images: torch.Tensor) -> Callable[[], dict[str, np.ndarray]]:
        """Take the mean colour."""
        means = images.mean((2, 3)).to(torch.float16).numpy()
        return lambda: {"image": means}


class MakeCheapEmbedder(MakeEmbedder):
    """Makes one that encodes by `Mean`."""

    def __call__(self) -> Embedder:
        """Return the embedder."""
        return Embedder(self.settings, self.fields, Mean())


def settings(encoder: EncoderParams, batch_size: int) -> Embed:
    """Return settings of one clean view."""
    return Embed(encoder, CAMERAS, 1, 0.0, 0.0, None, 0, batch_size, 256, 256, "stop")


def job(folder: Path, model: str, device: str, rows: int, batch_size: int) -> tuple[MakeEmbedder, list[Demo]]:
    """Return what encodes with a seeded model, and demonstrations of `rows` steps in all."""
    params = EncoderParams(model, "seeded", 0, resolve_precision("auto", device))
    encoder = shared_encoder(params, device, None, batch_size)
    fields = schema.fields(CAMERAS, 1, encoder.dim, ["expert_action"])
    return MakeEmbedder(settings(params, batch_size), encoder.identity, fields), write(folder, rows)


def make(
    folder: Path,
    made: Plan,
    factory: MakeEmbedder,
    compute: Compute,
    report: Callable[[Receipt, bool], None] | None = None,
) -> None:
    """Build as the stage does."""
    text = np.ones((1, 8), np.float32)
    run = partial(map_unordered, compute=compute, concurrency=CONCURRENCY)
    build(made, text, factory, folder / "store.zarr", folder / "work", run=run, report=report)


def plan(demos: list[Demo], fields: tuple[schema.Field, ...], shard_rows: int = 256) -> Plan:
    """Return a plan over the demonstrations."""
    return Plan(
        identity={"benchmark": True},
        fields=fields,
        episodes=tuple(units.Episode(demo.length, 0, demo.name, demo.name, payload=demo) for demo in demos),
        instructions=("none",),
        task_ids=(0,),
        shard_rows=shard_rows,
        chunk_rows=shard_rows,
    )


def write(root: Path, rows: int) -> list[Demo]:
    """Write demonstrations of smooth noise in LIBERO's layout, `rows` steps in all, and return them."""
    task = tasks(SUITE, [0])[0]
    lengths = [min(STEPS, rows - start) for start in range(0, rows, STEPS)]
    write_demos(demo_file(root, task), task, [episode(n, i) for i, n in enumerate(lengths)], SIM)
    return scan(root, SUITE, [task])[0]


def episode(length: int, seed: int) -> Episode:
    """Return one demonstration."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (len(CAMERAS), length, SIDE // 8, SIDE // 8, 3), np.uint8)
    frames = small.repeat(8, 2).repeat(8, 3)
    pose = np.tile(np.array([0, 0, 1, 1, 0, 0, 0], np.float32), (length, 1))
    return Episode(
        images=dict(zip(CAMERAS, frames, strict=True)),
        joint_pos=np.zeros((length, 7), np.float32),
        ee_pose=pose,
        gripper=np.zeros((length, 2), np.float32),
        ee_wrench=np.zeros((length, 6), np.float32),
        states=np.zeros((length, 92)),
        actions=np.ones((length, 7)),
        expert_actions=np.ones((length, 7)),
        model_xml="<mujoco/>",
        env_name="Libero_Tabletop_Manipulation",
        origin=Origin(0, 0, 0),
    )


if __name__ == "__main__":
    main()
