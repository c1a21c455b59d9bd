"""Files of the Hugging Face hub: from the cache, or downloaded; and a missing network told in seconds."""

import urllib.error
import urllib.request

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

REACH_TIMEOUT_S = 8.0


def hub_file(place: str) -> str:
    """Return the local path of a weights file, fetched if it is not in the cache.

    The cache is asked before the network, unlike in huggingface_hub, which retries for a minute when there is none.

    Args:
        place: as in open_clip's registry: "organisation/name/" or "organisation/name/file". For a .bin or .pth file,
            a .safetensors file beside it is preferred.

    Raises:
        OSError: the hub cannot be reached, or does not have the file.
    """
    repository, _, name = place.rpartition("/")
    names = _alternatives(name)
    for candidate in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return cached
    require_hub()
    for candidate in names[:-1]:
        try:
            return huggingface_hub.hf_hub_download(repository, candidate)
        except EntryNotFoundError:
            continue
    return huggingface_hub.hf_hub_download(repository, names[-1])


def _alternatives(name: str) -> list[str]:
    if not name:
        return [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    stem, _, suffix = name.rpartition(".")
    return [f"{stem}.safetensors", name] if suffix in ("bin", "pth") else [name]


def endpoint() -> str:
    """Return the address of the hub, which HF_ENDPOINT can set."""
    return constants.ENDPOINT


def require_hub() -> None:
    """Raise OSError if no server answers there. Any answer will do, also a refusal."""
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    try:
        request = urllib.request.Request(endpoint(), method="HEAD")
        urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:  # an HF_ENDPOINT that is no address
        raise OSError(f"no answer from {endpoint()}: {error}") from error
