"""The ledger of a build: one JSON line per finished unit, flushed to the disk, after the unit's shards are.

The first line says what the build is (fingerprint) and how it computes (versions, batch size...): under other
circumstances the bytes might differ in the last bits, so a build that was begun under them is not gone on with.
"""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache.errors import not_written


@dataclass(frozen=True)
class Receipt:
    """Proof that one unit is written.

    Attributes:
        unit: its number.
        key: `Plan.unit_key`.
        rows: with data.
        shards: per field, [bytes, sha256] of the shard file.
        seconds: it took; of no meaning for the content.
    """

    unit: int
    key: str
    rows: int
    shards: dict[str, tuple[int, str]]
    seconds: float


class Ledger:
    """Receipts of one build, append-only. Only one process writes it (see `cache.lock`)."""

    def __init__(self, path: Path, file: io.FileIO, receipts: dict[int, Receipt]) -> None:
        self.path = path
        self.receipts = receipts
        self._file = file

    @classmethod
    def resume(cls, path: Path, header: Mapping[str, Any]) -> "Ledger | None":
        """Open the ledger of an earlier run and cut off what a kill or a power cut left unfinished.

        Returns:
            None if there is none, or if its header is another: begin anew.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        header_line, *lines = content.splitlines(keepends=True) or [b""]
        if _parsed(header_line) != json.loads(json.dumps(header)):
            return None
        receipts, length = [], len(header_line)
        for line in lines:
            try:
                receipts.append(parse_receipt(_parsed(line)))
            except (AttributeError, KeyError, TypeError, ValueError):  # a line cut short, or damaged
                break
            length += len(line)
        file = path.open("r+b", buffering=0)
        file.truncate(length)
        file.seek(length)
        return cls(path, file, {receipt.unit: receipt for receipt in receipts})

    @classmethod
    def begin(cls, path: Path, header: Mapping[str, Any]) -> "Ledger":
        """Start an empty ledger."""
        ledger = cls(path, path.open("wb", buffering=0), {})
        ledger._append(dict(header))
        fsync_directory(path.parent)
        return ledger

    def add(self, receipt: Receipt) -> None:
        """Note a finished unit; when this returns, the note is on the disk."""
        self._append(asdict(receipt))
        self.receipts[receipt.unit] = receipt

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, value: dict[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise not_written(self.path, error) from error


def fsync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk: without it, a rename may be undone by a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parsed(line: bytes) -> Any:
    """Return the value of a line, None if it is not whole."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def parse_receipt(value: dict[str, Any]) -> Receipt:
    """Return a receipt from what `dataclasses.asdict` and JSON made of it."""
    shards = {name: (int(size), str(sha)) for name, (size, sha) in value["shards"].items()}
    return Receipt(**{**value, "shards": shards})
