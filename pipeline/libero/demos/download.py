"""LIBERO's own demonstrations from the Hugging Face hub (the Box links of the original repository have expired)."""

from pathlib import Path

from pipeline.errors import AssetError
from pipeline.hub import fetch
from pipeline.libero.suites import Task

REPOSITORY = "yifengzhu-hf/LIBERO-datasets"
REVISION = "f13aa24a3da8c43c7225569f28c562979fa0e35a"  # of 2025-05-18


def download(task: Task) -> Path:
    """Return the path of one task's HDF5 file (0.6-0.8 GB), in the Hugging Face cache; downloads it if it isn't there.

    Raises:
        AssetError: it can't be had, or is damaged.
    """
    from huggingface_hub.errors import EntryNotFoundError

    name = f"{task.suite}/{task.name}_demo.hdf5"
    try:
        return fetch(REPOSITORY, name, REVISION, "dataset")
    except (OSError, ValueError, EntryNotFoundError) as error:  # no network, offline mode, disk full, no such file
        summary = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AssetError(
            f"demos.source is 'official', but {name} cannot be had from {REPOSITORY}: {summary}\n"
            f"With a network, fetch it yourself: "
            f"hf download --repo-type dataset --revision {REVISION} {REPOSITORY} {name}\n"
            "Without one: copy the files here and set demos.source to 'path', or set it to 'scripted'."
        ) from error
