"""Shards of a finished build, kept by what they depend on, for the build of a changed plan to take over.

    <keep>/<unit key>/<field>         hard link to the shard in the finished store: takes no space while that is there
    <keep>/<unit key>/receipt.json    sizes, digests and how the rows were computed; written last

Whatever becomes of the store (DVC deletes an output before its stage runs again), the links stay.
"""

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cache.ledger import Receipt, fsync_directory, fsync_file, parse_receipt

log = logging.getLogger(__name__)
RECEIPT = "receipt.json"


def find(keep: Path, key: str, execution: Mapping[str, Any]) -> Receipt | None:
    """Return the receipt of the unit with this key, if it is kept, was computed in the same way and is undamaged."""
    try:
        record = json.loads((keep / key / RECEIPT).read_bytes())
        receipt = parse_receipt(record["receipt"])
        if receipt.key != key or record["execution"] != json.loads(json.dumps(execution)):
            return None
        for name, (_, sha256) in receipt.shards.items():
            if file_sha256(keep / key / name) != sha256:
                log.warning("%s has changed since it was kept and is not taken over", keep / key / name)
                return None
    except (OSError, ValueError, KeyError, TypeError):  # not kept, or only in part
        return None
    return receipt


def put(keep: Path, receipt: Receipt, shards: Mapping[str, Path], execution: Mapping[str, Any]) -> None:
    """Keep a finished unit.

    Args:
        keep: directory.
        receipt: of the unit.
        shards: field name -> file in the finished store.
        execution: as in `build.build`.

    Raises:
        OSError: the file system has no hard links, or the store is on another one.
    """
    folder = keep / receipt.key
    record = json.dumps({"receipt": asdict(receipt), "execution": dict(execution)}).encode()
    shutil.rmtree(folder, ignore_errors=True)
    for name, path in shards.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).hardlink_to(path)
    partial = folder / f"{RECEIPT}.partial"
    partial.write_bytes(record)
    partial.replace(folder / RECEIPT)


def sweep(keep: Path, keys: Collection[str]) -> None:
    """Remove all units but those with these keys."""
    for folder in keep.iterdir():
        if folder.name not in keys:
            shutil.rmtree(folder)


def adopt(source: Path, target: Path) -> None:
    """Give a finished shard a second name, or make a copy where there are no hard links. It is on the disk then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        partial.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, partial)
        fsync_file(partial)
    partial.replace(target)
    partial.unlink(missing_ok=True)  # renaming one link of a file over another does nothing
    fsync_directory(target.parent)


def file_sha256(path: Path) -> str:
    """Return the digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
