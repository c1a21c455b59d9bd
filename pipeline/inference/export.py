"""A policy bundle and its encoder -> a directory of ONNX graphs that `runtime.OnnxPolicy` runs, checked before it is
published.

Each graph is one file with its weights in it, has a dynamic batch, and says in its metadata whose it is.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from pipeline.compute import cores
from pipeline.encode.clip import ClipEncoder
from pipeline.errors import PipelineError
from pipeline.files import publish_directory
from pipeline.inference import manifest
from pipeline.inference.describe import describe
from pipeline.inference.encoder import check_encoder, check_transform
from pipeline.inference.graph import Graph, ImageTower, Inputs, TextTower, UnrolledPolicy, act
from pipeline.inference.policy import sampling_steps
from pipeline.inference.tokenizer import BytePairs
from pipeline.policy.bundle import PolicyBundle, PolicySpec
from pipeline.provenance import provenance

OPSET = 20  # what torch.onnx writes by default; newer ones are converted from it
REMEDY = "Export with the encoder that it was trained with"
TOLERANCE = 1e-5
"""Of the difference to PyTorch in fp32: of actions, in parts of the largest value that a component can have, 1 for
LIBERO's; of a tower's features, in parts of the largest one."""
BATCHES = (1, 3, 5)
INT8_FRAMES, INT8_ROUNDS = 16, 10


def export(
    bundle: PolicyBundle,
    encoder: ClipEncoder,
    instructions: Sequence[str],
    out: Path,
    steps: int | None = None,
    int8: bool = False,
) -> dict[str, Any]:
    """Write the export to the directory `out`, complete or not at all. An older one there is replaced.

    Args:
        bundle: on the CPU.
        encoder: on the CPU in fp32, of which the policy's features are; it stays as it is. Of a tuned policy its own
            tower is exported.
        instructions: whose features are kept, beside those that the bundle knows, so that neither text tower nor
            tokenizer is needed for them.
        steps: of sampling; None: the policy's own number.
        int8: write the image tower in 8 bits, too.

    Returns:
        The content of export.json.

    Raises:
        DataError: the encoder is another one than the policy's.
        ConfigError: a number of sampling steps that the policy can't have.
        PipelineError: a graph does not give what PyTorch gives.
    """
    _check_encoder(bundle.spec, encoder)
    if bundle.tower is not None:
        encoder = encoder.with_tower(bundle.tower)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tree = _write(partial, bundle, encoder, instructions, steps, int8)
        manifest.write(partial, tree)
        publish_directory(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest.read(out)


def _check_encoder(spec: PolicySpec, encoder: ClipEncoder) -> None:
    """Refuse an encoder that is not the policy's, or does not compute in fp32. Raises DataError: names both sides."""
    check_transform(spec)
    check_encoder(spec, {k: v for k, v in encoder.identity.items() if k != "precision"}, "here", REMEDY)
    if encoder.precision != "fp32" or encoder.device.type != "cpu":
        raise ValueError(f"the encoder is {encoder.precision} on {encoder.device}; towers are exported in fp32, on cpu")


def _write(
    folder: Path,
    bundle: PolicyBundle,
    encoder: ClipEncoder,
    instructions: Sequence[str],
    steps: int | None,
    int8: bool,
) -> dict[str, Any]:
    """Write and check all files but export.json, and return what that is to say."""
    spec, steps = bundle.spec, sampling_steps(bundle.spec.architecture, steps)
    owner = {
        manifest.BUNDLE_KEY: str(bundle.digest),
        manifest.ENCODER_KEY: str(spec.encoder["weights_sha256"]),
        "vla_flow.sampling_steps": str(steps),
        "vla_flow.describe": json.dumps(describe(spec)),
    }
    policy = UnrolledPolicy(bundle.network, steps)
    towers = {manifest.IMAGE: ImageTower(encoder, kind_of(spec)), manifest.TEXT: TextTower(encoder)}
    files = {
        name: write_graph(folder / name, graph, owner) for name, graph in {manifest.POLICY: policy, **towers}.items()
    }
    checks = {
        manifest.POLICY: check(
            folder / manifest.POLICY, policy, lambda inputs: act(bundle.network, inputs, steps), bundle.network.limits
        )
    }
    checks |= {name: check(folder / name, tower, tower) for name, tower in towers.items()}
    tokenizer = write_tokenizer(folder, encoder)
    if tokenizer:
        files[tokenizer["file"]] = {"what": "byte pair merges of the text tower's tokenizer, a pair a line"}
    quantised = None
    if int8:
        files[manifest.IMAGE_INT8] = files[manifest.IMAGE]
        quantised = quantise(folder, towers[manifest.IMAGE], owner)
    return {
        "policy": {
            "weights_sha256": str(bundle.digest),
            "head": spec.architecture.head,
            "steps": steps,
            "sim": spec.data.get("sim") or {},
        },
        "encoder": {**spec.encoder, "tuned": spec.tune, "features": kind_of(spec), "exported_precision": "fp32"},
        "describe": describe(spec),
        "files": files,
        "instructions": known_texts(bundle, encoder, instructions),
        "preprocessing": _preprocessing(encoder),
        "tokenizer": tokenizer,
        "checks": checks,
        "int8": quantised,
        "provenance": provenance(),
    }


def _preprocessing(encoder: ClipEncoder) -> dict[str, Any]:
    return {
        "crop": "centre, to the shorter side",
        "resize": "bicubic, antialiased, to bytes, as Pillow does it",
        "size": encoder.image_size,
        "mean": list(encoder.preprocess.mean),
        "std": list(encoder.preprocess.std),
        "inside_image_onnx": "division by 255, mean, std",
        "features": "rounded to float16 and back before they go into policy.onnx, as the store has them",
    }


def known_texts(bundle: PolicyBundle, encoder: ClipEncoder, more: Sequence[str]) -> dict[str, list[float]]:
    """Return the text features of the instructions that the bundle knows, as it has them, and of others."""
    known = {} if bundle.texts is None else dict(zip(bundle.spec.instructions, bundle.texts.tolist(), strict=True))
    new = [text for text in dict.fromkeys(more) if text not in known]
    return known | (dict(zip(new, encoder.text(new).tolist(), strict=True)) if new else {})


def kind_of(spec: PolicySpec) -> str:
    """Return which of `ClipEncoder.tower`'s features the policy takes."""
    return "grid" if spec.architecture.patches else "image"


def write_graph(path: Path, graph: Graph, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Export a graph, check the file, and return what its inputs and outputs are."""
    examples = graph.examples(2, 0)  # of 1 row the export would make a constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that inputs share an axis
        program = torch.onnx.export(
            graph.eval(),
            (),
            kwargs={"inputs": examples},
            dynamo=True,
            opset_version=OPSET,
            input_names=list(examples),
            output_names=[graph.output],
            dynamic_shapes={"inputs": {name: {0: "batch"} for name in examples}},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    _make_way(program.model.graph, examples)
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save_model(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)
    return {
        "inputs": {each.name: _shape(each) for each in model.graph.input},
        "outputs": {each.name: _shape(each) for each in model.graph.output},
    }


def _make_way(graph: Any, inputs: Collection[str]) -> None:
    """Rename what is computed in a graph and has an input's name: those are free, and torch calls its own "linear"."""
    inner = [value for node in graph for value in node.outputs] + list(graph.initializers.values())
    for value in inner:
        if value.name in inputs:
            value.name = f"{value.name}.inner"


def _shape(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"shape": [each.dim_param or each.dim_value for each in tensor.shape.dim], "dtype": dtype}


def check(
    path: Path, graph: Graph, reference: Callable[[Inputs], Tensor], limits: Tensor | None = None
) -> dict[str, Any]:
    """Compare a file in ONNX Runtime with PyTorch, on random inputs.

    Args:
        limits: (2, A), to which each component of what is compared is clipped: differences are in parts of the larger
            one. None: in parts of the largest value.

    Raises:
        PipelineError: they differ by more than TOLERANCE.
    """
    session = manifest.session(path.read_bytes(), cores())
    differences, clipped = {}, 0.0
    low, high = (-np.inf, np.inf) if limits is None else limits.cpu().numpy()
    for rows in BATCHES:
        inputs = graph.examples(rows, 1000 + rows)
        with torch.no_grad():
            wanted = reference(inputs).numpy()
        (found,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        if found.shape != wanted.shape:
            raise PipelineError(f"{path.name}: gives {found.shape} at batch {rows}, PyTorch {wanted.shape}")
        largest = np.abs(wanted).max() if limits is None else np.maximum(np.abs(low), np.abs(high))
        differences[rows] = float((np.abs(found - wanted) / np.where(largest > 0, largest, 1)).max())
        clipped = max(clipped, float(((wanted <= low) | (wanted >= high)).mean()))
    worst = max(differences.values())
    if not worst <= TOLERANCE:  # also what is no number
        raise PipelineError(
            f"{path.name}: differs from PyTorch by {worst:.2g}, more than {TOLERANCE:.0e}; the export is not "
            f"published. Report this, with torch {torch.__version__} and onnxruntime {ort.__version__}"
        )
    kind = {"relative_to_largest": True} if limits is None else {"share_clipped": clipped}
    return {"max_difference": worst, "at_batch": differences, "tolerance": TOLERANCE, **kind}


def write_tokenizer(folder: Path, encoder: ClipEncoder) -> dict[str, Any] | None:
    """Write what `BytePairs` needs, and return where it is and how many tokens there are; None for another tokenizer.

    Raises:
        PipelineError: it gives other tokens than the encoder's.
    """
    theirs = encoder.tokenizer
    if type(theirs) is not SimpleTokenizer or theirs.reduction_fn is not None:
        return None
    merges = [" ".join(pair) for pair in sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.__getitem__)]
    ours = BytePairs(merges, theirs.context_length)
    texts = ["pick up the black bowl and place it on the plate", "It's 7 o'clock: don't!", "word " * 100, ""]
    if not np.array_equal(ours(texts), theirs(texts).numpy()):
        raise PipelineError(f"{encoder.name}: its tokenizer is not CLIP's; the export is not published")
    (folder / manifest.MERGES).write_text("\n".join(merges) + "\n")
    return {"kind": "CLIP's byte pairs, ASCII", "file": manifest.MERGES, "length": theirs.context_length}


def quantise(folder: Path, graph: Graph, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write the image tower with weights of 8 bits, and return how its features, of random pictures, and speed compare.

    Weights are quantised by channel once, activations by tensor at each call. The embedding of patches stays in fp32.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, small = folder / manifest.IMAGE, folder / manifest.IMAGE_INT8
    logging.disable(logging.WARNING)  # it tells of every node, on the root logger
    try:
        quantize_dynamic(
            str(whole), str(small), weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"]
        )
    finally:
        logging.disable(logging.NOTSET)
    model = onnx.load_model(str(small))
    onnx.helper.set_model_props(model, {**metadata, "vla_flow.precision": "int8"})
    onnx.save_model(model, str(small))
    onnx.checker.check_model(str(small))
    sessions = {name: manifest.session(path.read_bytes(), cores()) for name, path in (("fp32", whole), ("int8", small))}
    frames = {name: x.numpy() for name, x in graph.examples(INT8_FRAMES, 0).items()}
    found = {name: each.run(None, frames)[0] for name, each in sessions.items()}
    products = (found["fp32"] * found["int8"]).sum(-1)
    cosine = products / np.prod([np.linalg.norm(x, axis=-1) for x in found.values()], axis=0)
    one = {name: x[:1] for name, x in frames.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(INT8_ROUNDS):
        for name, each in sessions.items():
            started = perf_counter()
            each.run(None, one)
            times[name].append(1e3 * (perf_counter() - started))
    return {
        "file": manifest.IMAGE_INT8,
        "cosine_to_fp32": {"mean": float(cosine.mean()), "min": float(cosine.min()), "frames": INT8_FRAMES},
        "ms_per_frame": {name: median(values) for name, values in times.items()},
        "threads": cores(),
        "bytes": {name: path.stat().st_size for name, path in (("fp32", whole), ("int8", small))},
    }
