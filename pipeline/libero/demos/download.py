"""LIBERO's own demonstrations from the Hugging Face hub (the Box links of the original repository have expired)."""

from pathlib import Path

from pipeline.errors import AssetError
from pipeline.libero.suites import Task

REPOSITORY = "yifengzhu-hf/LIBERO-datasets"


def download(task: Task) -> Path:
    """Return the path of one task's HDF5 file (0.6-0.8 GB), in the Hugging Face cache; downloads it if it isn't there.

    Raises:
        AssetError: it can't be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name = f"{task.suite}/{task.name}_demo.hdf5"
    try:
        return Path(hf_hub_download(REPOSITORY, name, repo_type="dataset")).resolve()
    except (OSError, ValueError, EntryNotFoundError) as error:  # no network, offline mode, disk full, no such file
        summary = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AssetError(
            f"demos.source is 'official', but {name} cannot be downloaded from {REPOSITORY}: {summary}\n"
            f"With a network, fetch it yourself: hf download --repo-type dataset {REPOSITORY} {name}\n"
            "Without one: copy the files here and set demos.source to 'path', or set it to 'scripted'."
        ) from error
