"""Read a store's files: from a directory, or from object storage through fsspec."""

import abc
import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from zarr.storage import FsspecStore, LocalStore

from cache.errors import StoreError

RANGE_BYTES = 8 << 20
"""Of one request to object storage: enough for the transfer to outweigh the latency."""


class File(abc.ABC):
    """One open file, read at given places.

    Attributes:
        run_bytes: how much to ask for at a time.
    """

    run_bytes: int

    @abc.abstractmethod
    def tail(self, size: int) -> bytes:
        """Return the last `size` bytes, or all of a shorter file."""

    @abc.abstractmethod
    def fill(self, offset: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill the buffers (bytes), one after the other, from `offset` on. EOFError if the file ends too early."""


class LocalFile(File):
    """A file on disk. Bytes go from the page cache straight to where they are wanted."""

    run_bytes = 2 << 20  # little enough that its checksum is taken while it is in the processor's cache

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def tail(self, size: int) -> bytes:
        """Return the last bytes."""
        self._file.seek(max(os.fstat(self._file.fileno()).st_size - size, 0))
        return self._file.read(size)

    def fill(self, offset: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill the buffers."""
        self._file.seek(offset)
        for buffer in buffers:
            _read_into(self._file, buffer.data)


class MemoryFile(File):
    """A file that has been read already."""

    run_bytes = 2 << 20

    def __init__(self, content: bytes) -> None:
        self._content = np.frombuffer(content, np.uint8)

    def tail(self, size: int) -> bytes:
        """Return the last bytes."""
        return self._content[max(len(self._content) - size, 0) :].tobytes()

    def fill(self, offset: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill the buffers."""
        if offset + sum(len(buffer) for buffer in buffers) > len(self._content):
            raise EOFError("ends too early")
        for buffer in buffers:
            buffer[:] = self._content[offset : offset + len(buffer)]
            offset += len(buffer)


class LocalFiles:
    """The files below a directory."""

    readers = 1  # the page cache is as fast as one thread takes checksums, which hold the interpreter's lock

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def zarr_store(self) -> Any:
        """Return what zarr opens."""
        return LocalStore(self._root, read_only=True)

    def name(self, key: str) -> str:
        """Return a file's path, for people."""
        return str(self._root / key)

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[File]:
        """Open a file. FileNotFoundError if there is none."""
        with io.FileIO(f"{self._root}/{key}") as file:
            yield LocalFile(file)

    def read(self, key: str) -> bytes:
        """Return the whole of a file. FileNotFoundError if there is none."""
        return (self._root / key).read_bytes()

    def keys(self) -> set[str]:
        """Return all files, but for those that a writer has not finished."""
        return _finished(path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if path.is_file())


class RemoteFile(File):
    """An object in a bucket, or whatever else fsspec reads by ranges; several of them at a time."""

    run_bytes = 32 << 20

    def __init__(self, fs: Any, path: str) -> None:
        self._fs = fs
        self._path = path

    def tail(self, size: int) -> bytes:
        """Return the last bytes."""
        return self._fs.cat_file(self._path, start=-size)

    def fill(self, offset: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill the buffers."""
        ends = offset + np.cumsum([len(buffer) for buffer in buffers])
        requests = [
            list(group) for _, group in groupby(range(len(buffers)), lambda i: (ends[i] - offset) // RANGE_BYTES)
        ]
        stops = [int(ends[group[-1]]) for group in requests]
        starts = [offset, *stops[:-1]]
        parts = self._fs.cat_ranges([self._path] * len(starts), starts, stops, max_gap=None, on_error="raise")
        for group, part in zip(requests, parts, strict=True):
            MemoryFile(part).fill(0, [buffers[i] for i in group])


class RemoteFiles:
    """The objects below a URL. What fsspec needs besides comes from the environment (AWS_ENDPOINT_URL, ...)."""

    readers = 4

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise unreachable(url, error) from error

    def zarr_store(self) -> Any:
        """Return what zarr opens."""
        return FsspecStore.from_url(self._url, read_only=True)

    def name(self, key: str) -> str:
        """Return an object's URL."""
        return f"{self._url}/{key}"

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[File]:
        """Yield an object. Reading it raises FileNotFoundError if there is none."""
        yield RemoteFile(self._fs, f"{self._root}/{key}")

    def read(self, key: str) -> bytes:
        """Return the whole of an object. FileNotFoundError if there is none."""
        return self._fs.cat_file(f"{self._root}/{key}")

    def keys(self) -> set[str]:
        """Return all objects; none where there is nothing to list them, as on many web servers."""
        try:
            found = self._fs.find(self._root)
        except FileNotFoundError:
            return set()
        root = self._root.rstrip("/") + "/"
        return _finished(path.removeprefix(root) for path in found if not path.endswith("/"))


def open_files(location: str) -> LocalFiles | RemoteFiles:
    """Return access to the files below a path or URL.

    Raises:
        StoreError: nothing that is installed understands such URLs.
    """
    return RemoteFiles(location) if "://" in location else LocalFiles(location)


def unreachable(where: str, error: BaseException) -> StoreError:
    """Return the error to raise when a location, a URL as a rule, does not answer as it should."""
    name = type(error).__name__
    return StoreError(f"{where}: cannot be read: {name}: {error}. {REMEDIES.get(name, 'Try again')}")


REMEDIES = {
    "NoCredentialsError": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "PermissionError": "Check who may read it, and whose credentials the environment holds (AWS_PROFILE, ...)",
    "EndpointConnectionError": "Check the network and AWS_ENDPOINT_URL",
    "ConnectTimeoutError": "Check the network and AWS_ENDPOINT_URL",
    "ClientConnectorError": "Check the network and the URL",
    "ImportError": "Install the package it names",
    "ValueError": "Check the URL; s3://bucket/path/to/store.zarr is one that works",
}
"""By the type of the exception: s3fs lets botocore's through, and botocore is no dependency of ours."""


def _finished(keys: Iterable[str]) -> set[str]:
    return {key for key in keys if not key.endswith(".partial")}


def _read_into(file: io.FileIO, view: memoryview) -> None:
    while len(view):
        count = file.readinto(view)
        if not count:
            raise EOFError("ends too early")
        view = view[count:]
