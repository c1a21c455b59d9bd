"""What encoders make of LIBERO's scenes: the project's own CLIP, random ones, raw pixels and, by a switch, OpenAI's.

    python -m benchmarks.encoders [--scenes data/scenes.zarr] [--openai]

On states that no encoder was trained on, of known and of unknown scenes, as the agentview camera shows them: which of
100 sentences is a picture's and the other way round; how often what is so is preferred to the same with one relation
changed; how often an instruction in words held out lies nearest to the same in LIBERO's words, among those of its
suite; the errors of linear probes for the places of things, fitted on and measured on pictures as LIBERO draws them
(a camera that stands elsewhere puts things elsewhere); images per second. Writes benchmarks/results/encoders.json.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.compute import cores
from pipeline.encode import own
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.files import write_atomic
from pipeline.libero.paraphrase import paraphrases
from pipeline.libero.suites import tasks
from pipeline.pretrain.data import Samples, load
from pipeline.pretrain.evaluate import fit_probes, matching, probe_errors, unit
from pipeline.provenance import cpu_name
from pipeline.rollout.metrics import wilson
from pipeline.scenes.store import HELD_OUT, TRAIN, UNSEEN, Pictures

RESULT = Path(__file__).parent / "results" / "encoders.json"
CAMERA = "agentview"
BATCH = 64
PIXELS = 24  # along a side, of pictures shrunk to be features themselves
SETS = {"known scenes": HELD_OUT, "unknown scenes": UNSEEN}
ENCODERS: dict[str, tuple[EncoderParams, GridParams]] = {
    "own": (EncoderParams(own.MODEL, own.TAG, 0, "bf16"), GridParams(8, -1)),
    "own, random weights": (EncoderParams(own.MODEL, "seeded", 0, "bf16"), GridParams(8, -1)),
    "ViT-S-32, random weights": (EncoderParams("ViT-S-32", "seeded", 0, "bf16"), GridParams(7, -1)),
}
OPENAI = {"ViT-B-16, OpenAI": (EncoderParams("ViT-B-16-quickgelu", "openai", 0, "bf16"), GridParams(7, -1))}
TEN_TASKS = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
Features = dict[str, np.ndarray]


def encode(encoder: ClipEncoder, samples: Samples) -> tuple[Features, float]:
    """Return pooled features and patch tokens, flat, of one camera's pictures; and images per second."""
    frames = samples.images[CAMERA]
    found: list[dict[str, np.ndarray]] = []
    seconds = []
    for at in range(0, len(frames), BATCH):
        began = time.perf_counter()
        found.append(encoder.forward(encoder.prepare(frames[at : at + BATCH])))
        seconds.append((time.perf_counter() - began) / len(frames[at : at + BATCH]))
    pooled = np.concatenate([features["image"] for features in found]).astype(np.float32)
    tokens = np.concatenate([features["grid"].reshape(len(features["grid"]), -1) for features in found])
    return {"pooled": pooled, "patch tokens": tokens.astype(np.float32)}, 1 / float(np.median(seconds))


@torch.inference_mode()
def read(encoder: ClipEncoder, texts: list[str]) -> np.ndarray:
    """Return features of texts, of long ones cut off: as the own CLIP was trained, which reads the fewest tokens."""
    found = [encoder.model.encode_text(encoder.tokenizer(texts[at : at + BATCH])) for at in range(0, len(texts), BATCH)]
    return torch.cat(found).float().numpy()


def shrunk(samples: Samples) -> Features:
    """Return pictures of PIXELS x PIXELS as features."""
    images = torch.from_numpy(samples.images[CAMERA]).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(images, (PIXELS, PIXELS), mode="area")
    return {f"{PIXELS} x {PIXELS} pixels": small.flatten(1).numpy() / 255}


def measure(
    features: Callable[[Samples], tuple[Features, float] | tuple[Features, None]],
    text: Callable[[list[str]], np.ndarray] | None,
    fit: Samples,
    tests: dict[str, Samples],
) -> dict[str, Any]:
    """Return the figures of one encoder; without anything to fit, none of probes."""
    probes = {kind: fit_probes(values, fit) for kind, values in features(fit)[0].items()} if len(fit) else {}
    result: dict[str, Any] = {"images_per_s": None}
    if text is not None:
        result["instructions in words held out"] = _rates(instructions(text))
    for name, samples in tests.items():
        (of_test, rate), plain = features(samples), np.flatnonzero(~samples.varied)
        result["images_per_s"] = rate and round(rate, 1)
        told: dict[str, Any] = {
            kind: probe_errors(probe, of_test[kind][plain], samples.rows(plain)) for kind, probe in probes.items()
        }
        result[name] = {"probe": told}
        if text is not None:
            ways = {"usual words": False, "words held out": True}
            result[name] |= {
                way: _rates(matching(samples, of_test["pooled"], text, 0, held_out)) for way, held_out in ways.items()
            }
    return result


def instructions(text: Callable[[list[str]], np.ndarray]) -> dict[str, dict[str, int]]:
    """Return how many instructions of each suite, in words held out, lie nearest to themselves in LIBERO's words."""
    found = {}
    for suite in TEN_TASKS:
        told = [task.language for task in tasks(suite)]
        ways = [(i, way) for i, each in enumerate(told) for way in paraphrases(each, held_out=True)]
        known, others = (unit(text(texts)) for texts in (told, [way for _, way in ways]))
        right = (others @ known.T).argmax(1) == np.array([i for i, _ in ways])
        found[suite] = {"n": len(ways), "right": int(right.sum())}
    return found


def _rates(counts: dict[str, Any]) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    for name, count in counts.items():
        if not isinstance(count, dict):
            rates[name] = count
            continue
        low, high = wilson(count["right"], count["n"]) or (None, None)
        rates[name] = {**count, "rate": count["right"] / max(1, count["n"]), "wilson_low": low, "wilson_high": high}
    return rates


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, default=Path("data/scenes.zarr"))
    parser.add_argument("--fit", type=int, default=6000, help="states that probes are fitted on; 0: no probes")
    parser.add_argument("--openai", action="store_true", help="also OpenAI's ViT-B-16, from the hub or its cache")
    parser.add_argument("--only", nargs="+", help="of the encoders, these")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    torch.set_num_threads(cores())
    learnt = load(args.scenes, [TRAIN], 8)
    plain = np.flatnonzero(~learnt.varied)
    fit = learnt.rows(np.random.default_rng(0).permutation(plain)[: args.fit])
    there = set(Pictures(args.scenes).split)
    tests = {name: load(args.scenes, [split], 8) for name, split in SETS.items() if split in there}
    machine = {"cpu": cpu_name(), "cores": cores(), "load_before": round(os.getloadavg()[0], 1)}
    result: dict[str, Any] = {"machine": machine, "fitted_on": len(fit), "encoders": {}}
    result["states"] = {name: len(samples) for name, samples in tests.items()}
    if not args.only:
        result["encoders"]["pixels"] = measure(lambda samples: (shrunk(samples), None), None, fit, tests)
    for name, (params, grid) in (ENCODERS | (OPENAI if args.openai else {})).items():
        if args.only and name not in args.only:
            continue
        encoder = ClipEncoder(params, grid=grid)
        found = measure(partial(encode, encoder), partial(read, encoder), fit, tests)
        result["encoders"][name] = found
        for which in tests:
            print(f"{name:26} {which:15} {json.dumps(found[which])}", flush=True)
        write_atomic(args.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
