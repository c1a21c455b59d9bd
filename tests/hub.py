"""A stand-in of the Hugging Face hub on the loopback: as much of it as huggingface_hub calls to download and upload."""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

LARGE = ".safetensors"  # what a repository's .gitattributes keeps in LFS


@dataclass
class Hub:
    """What the server holds, and what it was asked.

    Attributes:
        files: path of the URL, /user/name/resolve/revision/file -> content.
        commit: of everything.
        repositories: those that were made: name -> what was asked for.
        tokens: of every request that changes something.
        writer: the token that may write; None: any.
        objects: LFS objects, SHA-256 -> content.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = "0" * 40
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: list[str | None] = field(default_factory=list)
    writer: str | None = None
    objects: dict[str, bytes] = field(default_factory=dict)

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """Answer POST /api/repos/create."""
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.repositories else 200
        self.repositories.setdefault(name, asked)
        return status, {"url": f"{self.url}/{name}"}

    def card_checked(self, text: str) -> tuple[int, Any]:
        """Answer POST /api/validate-yaml, which is asked before a README.md is committed."""
        front = yaml.safe_load(text.split("---\n")[1])
        wrong = [{"message": f"no {name}"} for name in ("license", "tags") if not front.get(name)]
        return (400 if wrong else 200), {"errors": wrong, "warnings": []}

    def modes(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """Answer POST /api/models/<name>/preupload/<revision>."""
        paths = [file["path"] for file in asked["files"]]
        modes = ["lfs" if path.endswith(LARGE) else "regular" for path in paths]
        return 200, {
            "files": [
                {"path": path, "uploadMode": mode, "shouldIgnore": False}
                for path, mode in zip(paths, modes, strict=True)
            ]
        }

    def batch(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """Answer POST /<name>.git/info/lfs/objects/batch."""
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}} for each in asked["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def store(self, oid: str, content: bytes) -> tuple[int, Any]:
        """Answer PUT /lfs/<oid>."""
        if hashlib.sha256(content).hexdigest() != oid:
            return 422, {"error": "not what its digest says"}
        self.objects[oid] = content
        return 200, {}

    def commit_files(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        """Answer POST /api/models/<name>/commit/<revision>."""
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.objects[value["oid"]]
            else:
                continue
            for revision in ("main", self.commit):
                self.files[f"/{name}/resolve/{revision}/{value['path']}"] = content
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{self.commit}", "commitOid": self.commit}

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Return status and JSON of a request that changes something."""
        self.tokens.append(token)
        if method == "PUT":  # to an address that the hub has signed
            return self.store(path.rpartition("/")[2], body)
        if self.writer is not None and token != self.writer:
            return 401, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            return self.card_checked(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if "/preupload/" in path:
            return self.modes(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        if "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            return self.commit_files(name, [json.loads(line) for line in body.splitlines()])
        return 404, {"error": path}


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.show()

        def do_GET(self) -> None:
            self.show()

        def do_POST(self) -> None:
            self.change()

        def do_PUT(self) -> None:
            self.change()

        def show(self) -> None:
            content = hub.files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("X-Repo-Commit", hub.commit)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{etag(self.path, content)}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        def change(self) -> None:
            body = self.body()
            token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
            status, answer = hub.answer(self.command, self.path.partition("?")[0], body, token)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            if self.headers["Transfer-Encoding"] != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"] or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def etag(path: str, content: bytes) -> str:
    """Return what the hub tells of a file's content: SHA-256 in LFS, else git's hash."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Start the server and make huggingface_hub use it, with an empty cache and no token."""
    import huggingface_hub.constants as constants

    hub = Hub()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, with servers of its own
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
        server.shutdown()
