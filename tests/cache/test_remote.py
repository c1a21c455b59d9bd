"""Stores on object storage: a real S3 server on loopback, with real requests."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from cache import open_store, stream
from cache.__main__ import main
from cache.errors import StoreError
from cache.files import RANGE_BYTES, RemoteFile
from cache.verify import verify
from tests.cache.synthetic import TEXT, expected, make_plan


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An empty bucket, and the environment of somebody who may use it."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fs = fsspec.filesystem("s3")
    fs.mkdir("stores")
    yield "s3://stores"
    fs.rm("stores", recursive=True)
    fs.clear_instance_cache()


def uploaded(store: Path, bucket: str, name: str = "s.zarr") -> str:
    """Upload as docs/store.md has it."""
    url = f"{bucket}/{name}"
    fs, path = fsspec.url_to_fs(url)
    fs.put(str(store), path, recursive=True)
    return url


def test_reads_what_was_uploaded(sound: Path, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = uploaded(sound, bucket)
    store, whole = open_store(url), expected(make_plan())
    for name, values in whole.items():
        np.testing.assert_array_equal(store.read(name), values)
        np.testing.assert_array_equal(store.read(name, 13, 50), values[13:50])
    assert store.episodes.source == open_store(sound).episodes.source
    np.testing.assert_array_equal(store.texts.embedding, TEXT)
    assert verify(url) == []
    main(["info", url])
    assert f"{url}\n" in capsys.readouterr().out
    main(["verify", url])
    assert capsys.readouterr().out == f"{url}: sound\n"


def test_damage_is_named(sound: Path, bucket: str, tmp_path: Path) -> None:
    damaged = shutil.copytree(sound, tmp_path / "s.zarr")
    action, image = damaged / "lowdim/action/c", damaged / "image/agentview/c"
    (action / "1/0").write_bytes((action / "1/0").read_bytes()[:-9])
    (action / "2/0").write_bytes(b"")
    (action / "4/0").unlink()
    content = bytearray((image / "3/0/0").read_bytes())
    content[5] ^= 1
    (image / "3/0/0").write_bytes(content)
    url = uploaded(damaged, bucket)
    store = open_store(url)
    for name, unit, what in (
        ("lowdim/action", 1, "is damaged or truncated"),
        ("lowdim/action", 2, "is truncated"),
        ("lowdim/action", 4, "is missing"),
        ("image/agentview", 3, "the checksum of chunk 0 differs"),
    ):
        with pytest.raises(StoreError, match=f"{url}/{name}/c/{unit}/.*: shard {unit} of {name} .*{what}"):
            store.read(name, 16 * unit, 16 * unit + 16)
    assert [(p.array, p.unit) for p in verify(url)] == [
        ("image/agentview", 3),
        *(("lowdim/action", unit) for unit in (1, 2, 4)),
    ]


def test_large_reads_are_split_into_requests(bucket: str) -> None:
    sizes = [7, RANGE_BYTES // 2, 4, RANGE_BYTES // 2, RANGE_BYTES + 1, 3]
    content = np.random.default_rng(0).integers(0, 256, sum(sizes) + 9, np.uint8)
    fs, path = fsspec.url_to_fs(f"{bucket}/object")
    fs.pipe(path, content.tobytes())
    buffers = [np.empty(size, np.uint8) for size in sizes]
    RemoteFile(fs, path).fill(4, buffers)
    np.testing.assert_array_equal(np.concatenate(buffers), content[4:-5])
    with pytest.raises(EOFError):
        RemoteFile(fs, path).fill(10, buffers)


def test_no_store_there(bucket: str) -> None:
    with pytest.raises(StoreError, match=r"s3://stores/none.zarr: no embedding store there"):
        open_store(f"{bucket}/none.zarr")
    with pytest.raises(StoreError, match=r"s3://nobodys/none.zarr: no embedding store there, or no such bucket"):
        open_store("s3://nobodys/none.zarr")


def test_no_credentials(sound: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = uploaded(sound, bucket)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StoreError, match=rf"{url}: .*NoCredentialsError.*Set AWS_ACCESS_KEY_ID"):
        open_store(url)


def test_no_network(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(
        StoreError, match=r"s3://stores/s.zarr: .*EndpointConnectionError.*Check the network and AWS_EN"
    ):
        open_store("s3://stores/s.zarr")


def test_urls_nobody_understands() -> None:
    with pytest.raises(StoreError, match=r"foo://a/s.zarr: .*Protocol not known.*Check the URL"):
        open_store("foo://a/s.zarr")
    with pytest.raises(StoreError, match=r"gs://a/s.zarr: .*gcsfs.*Install the package it names"):
        open_store("gs://a/s.zarr")


def test_streams_in_the_same_order_as_from_a_disk(sound: Path, bucket: str) -> None:
    url = uploaded(sound, bucket)
    names, memory = ["image/agentview", "lowdim/action"], 1_000_000
    local = list(stream([open_store(sound)], names, 10, memory, seed=1))
    remote = list(stream([open_store(url)], names, 10, memory, seed=1))
    assert len(local) == len(remote) == 9
    for a, b in zip(local, remote, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        for name in names:
            np.testing.assert_array_equal(a.values[name], b.values[name])
