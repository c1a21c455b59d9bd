"""Where assets come from, with a small Hugging Face hub on the loopback interface."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.config.params import Sim
from pipeline.errors import AssetError
from pipeline.libero.asset_source import PARTS, asset_directory

SIM = Sim("embedded", None, "fast", "auto", 128, 10, 7)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {f"{part}/thing.xml": f"<mujoco model='{part}'/>".encode() for part in PARTS}

RESOLVE = """
from pipeline.config.params import Sim
from pipeline.errors import AssetError
from pipeline.libero.asset_source import asset_directory
try:
    print(asset_directory(Sim("official", None, "full", "auto", 128, 10, 7), "libero_goal"))
except AssetError as e:
    print("AssetError", e)
"""


class Hub(BaseHTTPRequestHandler):
    """What the client asks of the hub for one public dataset of small files."""

    broken = ""  # a file that this hub fails to send

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.split("?")[0]
        base = "/api/datasets/lerobot/libero-assets"
        if path.startswith(f"{base}/tree/"):
            tree = [{"type": "file", "path": p, "size": len(c), "oid": blob_id(p)} for p, c in FILES.items()]
            self.send(json.dumps(tree).encode())
        elif path == base or path.startswith(f"{base}/revision/"):
            siblings = [{"rfilename": name} for name in FILES]
            self.send(json.dumps({"id": "lerobot/libero-assets", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            name = path.removeprefix(f"/datasets/lerobot/libero-assets/resolve/{COMMIT}/")
            known = name in FILES and name != self.broken
            headers = {"ETag": f'"{blob_id(name)}"', "X-Repo-Commit": COMMIT}
            self.send(FILES.get(name, b""), 200 if known else 403, **headers)  # 403: the client does not try again

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def blob_id(name: str) -> str:
    return f"{PARTS.index(name.split('/')[0]):040x}" if name in FILES else "f" * 40


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def resolve(endpoint: str, cache: Path) -> str:
    """asset_directory of the official assets, in a process of its own: the client reads its settings when imported."""
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HOME": str(cache), "PATH": ""}
    result = subprocess.run([sys.executable, "-c", RESOLVE], env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_embedded_assets_are_built() -> None:
    directory = asset_directory(SIM, "libero_spatial")
    assert all((directory / part).is_dir() for part in ("articulated_objects", "scenes"))
    assert asset_directory(SIM, "libero_spatial") == directory


def test_embedded_assets_refuse_other_suites_with_the_remedy() -> None:
    with pytest.raises(AssetError, match=r"not libero_goal.*sim\.assets=official.*sim\.assets_path"):
        asset_directory(SIM, "libero_goal")


def test_a_path_is_taken_if_it_is_whole(tmp_path: Path) -> None:
    official = replace(SIM, assets="official", assets_path=str(tmp_path))
    for part in PARTS[1:]:
        (tmp_path / part).mkdir()
    with pytest.raises(AssetError, match=rf"lacks {PARTS[0]}\..*hf download"):
        asset_directory(official, "libero_goal")
    (tmp_path / PARTS[0]).mkdir()
    assert asset_directory(official, "libero_goal") == tmp_path.resolve()


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    official = replace(SIM, assets="official", assets_path=str(tmp_path / "none"))
    with pytest.raises(AssetError, match="none is not a directory"):
        asset_directory(official, "libero_goal")


def test_a_download_is_whole_and_kept(hub: str, tmp_path: Path) -> None:
    directory = Path(resolve(hub, tmp_path))
    assert directory.name == COMMIT
    assert {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.xml")} == FILES
    assert Path(resolve("http://127.0.0.1:9", tmp_path)) == directory  # nothing listens there: no network needed now


def test_a_download_that_breaks_off_is_an_error_until_it_is_whole(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "broken", f"{PARTS[2]}/thing.xml")
    assert resolve(hub, tmp_path).startswith("AssetError sim.assets=official")
    assert resolve("http://127.0.0.1:9", tmp_path).startswith("AssetError sim.assets=official")
    monkeypatch.setattr(Hub, "broken", "")
    assert Path(resolve(hub, tmp_path)).name == COMMIT


@pytest.mark.parametrize("listening", [False, True], ids=["refused", "silent"])
def test_no_hub_is_an_error_within_seconds(listening: bool, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not listening:
            server.close()
        start = time.monotonic()
        message = resolve(f"http://127.0.0.1:{port}", tmp_path)
    assert time.monotonic() - start < 30
    assert "sim.assets=official" in message
    assert "hf download --repo-type dataset lerobot/libero-assets" in message
    assert "sim.assets_path" in message
