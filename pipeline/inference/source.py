"""Where a policy is read from: a directory, or a repository of the Hugging Face hub."""

import logging
from pathlib import Path

from huggingface_hub.errors import HFValidationError

from pipeline.errors import AssetError
from pipeline.hub import commit, fetch
from pipeline.policy.bundle import JSON, load_spec

HUB = "hf://"
COMMIT = 40  # hexadecimal digits: what never moves
log = logging.getLogger(__name__)


def local_bundle(source: str | Path) -> Path:
    """Return the directory of a bundle: `source` itself, or where its files lie once they are fetched.

    Args:
        source: a directory, or hf://user/name[@revision], where a revision is a commit, a tag or a branch. Without one
            the main branch is taken, as it is now.

    Raises:
        AssetError: the hub cannot be reached, or has no such bundle.
        DataError: policy.json is damaged.
    """
    if not str(source).startswith(HUB):
        return Path(source)
    repository, _, revision = str(source).removeprefix(HUB).partition("@")
    try:
        description = fetch(repository, JSON, revision or None, newest=len(revision) != COMMIT)
        folder = description.parent
        log.info("%s: commit %s", source, commit(description))
        for name in load_spec(folder).files:  # all of one commit
            fetch(repository, name, commit(description))
    except (OSError, HFValidationError) as error:
        raise AssetError(
            f"{source}: cannot get the policy: {' '.join(str(error).split())[:400]}. Name a repository that "
            "`python -m stages.push` made, as hf://user/name[@revision]; set HF_TOKEN if it is private"
        ) from error
    return folder
