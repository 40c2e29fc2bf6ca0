"""A stand-in for the Hugging Face hub, which tests cannot reach: models and data sets, each at one commit.

It answers what the hub's own client asks: about a repository, its tree, and its files. Nothing of it is imported from
elsewhere, so that a pod can run it too: `python fake_hub.py PORT`, with the repositories of `MODELS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

SHA = "1" * 40
EXPIRED = "hf_expired"
"""A token that the hub knows no more."""

_ABOUT_A_REPOSITORY = {"models": "/api/models/", "datasets": "/api/datasets/"}
_FILES_OF_ONE = {"models": "/", "datasets": "/datasets/"}


@dataclasses.dataclass(frozen=True)
class Repository:
    """What the hub has under a name.

    Attributes:
        kind: `models` or `datasets`.
        gated: everyone may see that it exists, nobody gets its files.
    """

    kind: str
    files: Mapping[str, bytes]
    gated: bool = False


MODELS = {"tiny-org/gated": Repository("models", {"config.json": b"{}", "model.safetensors": b""}, gated=True)}


@contextlib.contextmanager
def serve(repositories: Mapping[str, Repository]) -> Iterator[str]:
    """Serve them on loopback; gives the value for HF_ENDPOINT."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(repositories))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def handler(repositories: Mapping[str, Repository]) -> type[http.server.BaseHTTPRequestHandler]:
    """What answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.headers.get("Authorization") == f"Bearer {EXPIRED}":
                said = "Invalid credentials in Authorization header"
                self._json({"error": said}, 401, {"X-Error-Message": said})
                return
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            for name, repository in repositories.items():
                about = _ABOUT_A_REPOSITORY[repository.kind] + name
                resolve = f"{_FILES_OF_ONE[repository.kind]}{name}/resolve/"
                if path.startswith(resolve) and repository.gated:
                    self._json({"error": f"{name} is gated"}, 401, {"X-Error-Code": "GatedRepo"})
                elif path.startswith(resolve):
                    self._file(repository.files, path.removeprefix(resolve).partition("/")[2])
                elif path == about or path.startswith(f"{about}/revision/"):
                    self._json(_about(name, repository))
                elif path.startswith(f"{about}/tree/"):
                    folder = path.removeprefix(f"{about}/tree/").partition("/")[2]
                    self._json(_tree(repository.files, folder, recursive="recursive=" in self.path.lower()))
                else:
                    continue
                return
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
            try:
                asked = json.loads(body)["paths"]
            except ValueError:
                asked = urllib.parse.parse_qs(body)["paths"]
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            named = (found for name, found in repositories.items() if f"/{name}/" in path)
            files = next(named, Repository("models", {})).files
            entries = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            self._json([entries[path] for path in asked if path in entries])

        def _file(self, files: Mapping[str, bytes], path: str) -> None:
            if path not in files:
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            content, code, headers = files[path], 200, {"X-Repo-Commit": SHA, "ETag": f'"{_digest(files[path])}"'}
            asked = self.headers.get("Range", "")
            if asked.startswith("bytes="):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
                content, code = content[begin : end + 1], 206
            self._answer(content, code, {"Content-Type": "application/octet-stream"} | headers)

        def _json(self, value: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self._answer(json.dumps(value).encode(), code, {"Content-Type": "application/json"} | dict(headers or {}))

        def _answer(self, content: bytes, code: int, headers: Mapping[str, str]) -> None:
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return Handler


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _about(name: str, repository: Repository) -> dict[str, Any]:
    return {
        "_id": "0" * 24,
        "id": name,
        "author": name.partition("/")[0],
        "sha": SHA,
        "lastModified": "2024-01-08T11:33:10.000Z",
        "createdAt": "2023-11-02T16:18:08.000Z",
        "private": False,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "downloads": 1,
        "likes": 1,
        "tags": [],
        "siblings": [{"rfilename": path} for path in repository.files],
    }


def _tree(files: Mapping[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    start = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if not path.startswith(start):
            continue
        rest = path.removeprefix(start)
        if "/" in rest:
            inner = start + rest.partition("/")[0]
            found[inner] = {"type": "directory", "path": inner, "oid": _digest(inner.encode()), "size": 0}
        if recursive or "/" not in rest:
            found[path] = {"type": "file", "path": path, "oid": _digest(content), "size": len(content)}
    return list(found.values())


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("", int(sys.argv[1])), handler(MODELS)).serve_forever()
