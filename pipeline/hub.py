"""Files of the Hugging Face hub: from the cache, or downloaded, or uploaded; a missing network told in seconds."""

import hashlib
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

REACH_TIMEOUT_S = 8.0
SHA256 = re.compile("[0-9a-f]{64}")
log = logging.getLogger(__name__)


def fetch(
    repository: str,
    name: str,
    revision: str | None = None,
    kind: Literal["model", "dataset"] = "model",
    newest: bool = False,
) -> Path:
    """Return the path of a file in the hub's cache, downloaded if it is not there, after a look at what it holds.

    The cache is asked before the network, unlike in huggingface_hub, which retries for a minute when there is none.

    Args:
        repository: "organisation/name".
        name: of the file in it.
        revision: commit hash, tag or branch; None is the main branch.
        kind: of repository.
        newest: ask the hub whether the branch has moved since; if it does not answer, a file in the cache is taken, and
            the log says so. Otherwise a branch is what it was when the file was first downloaded.

    Raises:
        OSError: the hub cannot be reached, or does not have the file (then an EntryNotFoundError), or the content is
            not what its SHA-256 in the hub says.
    """
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision, repo_type=kind)
    if newest or not isinstance(path, str):
        try:
            require_hub()
        except OSError as error:
            if not isinstance(path, str):
                raise
            log.warning("%s: taken as it was fetched before, which may not be the newest: %s", repository, error)
        else:
            path = huggingface_hub.hf_hub_download(repository, name, revision=revision, repo_type=kind)
    blob = Path(path).resolve()  # the cache calls a large file by its SHA-256
    if SHA256.fullmatch(blob.name):
        with blob.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != blob.name:
            raise OSError(f"{blob} is damaged: its SHA-256 is {found}. Delete it, and it is downloaded again")
    return Path(path).absolute()


def upload(repository: str, files: Mapping[str, Path | bytes], message: str, private: bool = False) -> str:
    """Put files into a model repository in one commit; return its hash. The repository is made if need be.

    The token is huggingface_hub's: HF_TOKEN, or that of `hf auth login`.

    Args:
        repository: "organisation/name".
        files: name in the repository -> local file, or content.
        private: whether a repository that is made is for its owner alone.

    Raises:
        OSError: the hub cannot be reached, or refuses.
        ValueError: no name of a repository.
    """
    import huggingface_hub

    require_hub()
    api = huggingface_hub.HfApi(endpoint=endpoint())
    api.create_repo(repository, private=private, exist_ok=True)
    operations = [
        huggingface_hub.CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    return str(api.create_commit(repository, operations, commit_message=message).oid)


def commit(path: Path) -> str | None:
    """Return the commit that a file in the hub's cache is of; None for a path elsewhere."""
    return next((folder.name for folder in path.parents if folder.parent.name == "snapshots"), None)


def endpoint() -> str:
    """Return the address of the hub, which HF_ENDPOINT can set."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def require_hub() -> None:
    """Raise OSError if no server answers there. Any answer will do, also a refusal."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    try:
        request = urllib.request.Request(endpoint(), method="HEAD")
        urllib.request.urlopen(request, timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:  # an HF_ENDPOINT that is no address
        raise OSError(f"no answer from {endpoint()}: {error}") from error
