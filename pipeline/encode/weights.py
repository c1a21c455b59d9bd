"""Where a frozen CLIP's weights come from: drawn from a seed, an open_clip tag, or a local file. And checks on them."""

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.factory import get_model_config
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from pipeline.encode import own
from pipeline.encode.hub import hub_file
from pipeline.encode.settings import SEEDED, EncoderParams
from pipeline.errors import AssetError, ConfigError, did_you_mean
from pipeline.hub import commit

KEY = "embed.encoder.pretrained"
own.register()


def load_model(params: EncoderParams) -> torch.nn.Module:
    """Return the open_clip model with the weights that `params` names: fp32, on the CPU, in eval mode, frozen.

    Raises:
        ConfigError: unknown model or tag, or weights whose activation is not the model's.
        AssetError: weights that cannot be fetched or read.
    """
    if params.model not in open_clip.list_models():
        hint = did_you_mean(params.model, open_clip.list_models())
        raise ConfigError(f"embed.encoder.model: open_clip has no {params.model!r}.{hint}")
    if params.pretrained == SEEDED:
        model = _seeded(params)
    elif (params.model, params.pretrained) == (own.MODEL, own.TAG):
        model = _local(params, own.weights())
    elif get_pretrained_cfg(params.model, params.pretrained):
        model = _tagged(params)
    elif Path(params.pretrained).is_file():
        model = _local(params, Path(params.pretrained))
    else:
        raise _unknown(params)
    return model.eval().requires_grad_(False)


def has_name(model: str, pretrained: str) -> bool:
    """Whether weights go by this name wherever the project runs: no file of the user's is meant."""
    published = (model, pretrained) == (own.MODEL, own.TAG)
    return published or pretrained == SEEDED or bool(get_pretrained_cfg(model, pretrained))


def load_tokenizer(model: str) -> Any:
    """Return the tokenizer of an open_clip model."""
    vocabulary = {"bpe_path": str(own.VOCABULARY)} if model == own.MODEL else {}
    with _quiet():
        return open_clip.get_tokenizer(model, **vocabulary)


def activation(model: str) -> str:
    """Return "quick_gelu" or "gelu": what open_clip builds the model of this name with."""
    return "quick_gelu" if (get_model_config(model) or {}).get("quick_gelu", False) else "gelu"


def hub_source(params: EncoderParams) -> dict[str, str | None] | None:
    """Return repository and commit of weights that came from the Hugging Face hub; None for any others."""
    place = (get_pretrained_cfg(params.model, params.pretrained) or {}).get("hf_hub")
    return {"repository": place.rpartition("/")[0], "commit": commit(hub_file(place))} if place else None


def weights_sha256(model: torch.nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of all parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _create(params: EncoderParams, pretrained: str | None, preprocess: dict[str, Any] | None = None) -> torch.nn.Module:
    """Call open_clip, without what it says on the root logger, and without a trace in torch's global generator."""
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(params.seed)
        return open_clip.create_model(
            params.model, pretrained=pretrained, weights_only=True, force_preprocess_cfg=preprocess
        )


def _seeded(params: EncoderParams) -> torch.nn.Module:
    """Draw random weights: the same bits on every machine.

    torch's normal_ differs in the last bits between CPUs with and without AVX2, so what open_clip drew is drawn again:
    uniform, with LeCun's variance 1/fan_in, from numpy's PCG64 by exactly rounded operations only. What is constant
    at creation (biases of zero, norms, the logit scale) stays. Embeddings of positions and of the class token have
    variance 1, as the embedded patches have: with less, an untrained transformer is all but blind to where things are.
    """
    model = _create(params, None)
    generator = np.random.Generator(np.random.PCG64(params.seed))
    for name, weight in sorted(model.named_parameters()):
        if weight.ndim == 0 or (weight == weight.flatten()[0]).all():
            continue
        fan_in = weight[0].numel() if weight.ndim > 1 else weight.numel()
        if name.endswith(("positional_embedding", "class_embedding", "pos_embed", "cls_token")):
            fan_in = 1
        bound = math.sqrt(3 / fan_in)
        draw = ((generator.random(weight.shape) * 2 - 1) * bound).astype(np.float32)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(draw))
    return model


def _tagged(params: EncoderParams) -> torch.nn.Module:
    cfg = get_pretrained_cfg(params.model, params.pretrained)
    wanted = "quick_gelu" if cfg.get("quick_gelu", False) else "gelu"
    if wanted != activation(params.model):
        raise ConfigError(_mismatch(params, wanted))
    try:
        if not cfg.get("hf_hub"):
            return _create(params, params.pretrained)
        preprocess = {key: cfg[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in cfg}
        return _create(params, str(hub_file(cfg["hf_hub"])), preprocess)
    except Exception as error:
        place = cfg.get("hf_hub") or cfg.get("url")
        raise AssetError(
            f"{KEY}: cannot get the weights {params.pretrained!r} of {params.model} ({place}): {_short(error)}. "
            f"Connect to the network once (they are cached then), or set {KEY} to a checkpoint file, "
            f"or to {SEEDED!r} for random weights that need no download."
        ) from error


def _local(params: EncoderParams, path: Path) -> torch.nn.Module:
    declared = _declared_activation(path)
    if declared and declared != activation(params.model):
        raise ConfigError(_mismatch(params, declared))
    try:
        model = _create(params, str(path))
    except Exception as error:
        remedy = f"It must be a .safetensors or torch file with the weights of {params.model} and no other objects."
        if "TorchScript" in str(error):
            remedy = (
                "It is a TorchScript archive, as OpenAI published them, which can run code. Use the tag 'openai' with "
                "the model's -quickgelu name, or save its state_dict as .safetensors."
            )
        raise AssetError(f"{KEY}: cannot load {path}: {_short(error)}. {remedy}") from error
    if not declared and activation(params.model) == "gelu" and ("openai" in path.name or _looks_like_openai(model)):
        raise ConfigError(
            _mismatch(params, "quick_gelu")
            + " (All values are exact in half precision and the logit scale is 100, as in OpenAI's weights. If these "
            "are others, say so in the metadata of a .safetensors file: activation=gelu.)"
        )
    return model


def _declared_activation(path: Path) -> str | None:
    if path.suffix != ".safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("activation")
    except SafetensorError as error:
        raise AssetError(
            f"{KEY}: {path} is no safetensors file, or a truncated one ({error}). Fetch it again."
        ) from error


def _looks_like_openai(model: torch.nn.Module) -> bool:
    """OpenAI released half precision, at a clipped logit scale of 100; others train and release in fp32."""
    state = model.state_dict()
    if abs(math.exp(float(state.get("logit_scale", torch.tensor(0.0)))) - 100) > 0.1:
        return False
    return all(torch.equal(w, w.half().float()) for w in state.values() if w.is_floating_point() and w.ndim > 0)


def _mismatch(params: EncoderParams, wanted: str) -> str:
    base = params.model.removesuffix("-quickgelu")
    name = f"{base}-quickgelu" if wanted == "quick_gelu" else base
    return (
        f"{KEY}: {params.pretrained!r} was trained with {wanted}, but {params.model} computes "
        f"{activation(params.model)}: the features would be wrong. Set embed.encoder.model: {name}"
    )


def _unknown(params: EncoderParams) -> Exception:
    base = params.model.removesuffix("-quickgelu")
    if base != params.model and get_pretrained_cfg(base, params.pretrained):
        return ConfigError(_mismatch(params, "gelu"))
    if "/" in params.pretrained or Path(params.pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        return AssetError(f"{KEY}: no file {params.pretrained}. Put the checkpoint there, or name an open_clip tag.")
    tags = [SEEDED, *([own.TAG] if params.model == own.MODEL else []), *list_pretrained_tags_by_model(params.model)]
    return ConfigError(
        f"{KEY}: {params.pretrained!r} is no tag of {params.model}, and no file.{did_you_mean(params.pretrained, tags)}"
    )


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:200] + " ... " + text[-200:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip reports each step, and 'No pretrained weights loaded', on the root logger; errors it raises as well."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
