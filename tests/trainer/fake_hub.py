"""A stand-in for the Hugging Face hub on loopback, which tests cannot reach: one data set at one commit.

It answers what the hub's own client asks for a data set of files: about the repository, its tree, and its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

SHA = "1" * 40


@contextlib.contextmanager
def serve(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve a data set; gives the value for HF_ENDPOINT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            prefix, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            if path.startswith(resolve):
                self._file(path.removeprefix(resolve).partition("/")[2])
            elif path == prefix or path.startswith(f"{prefix}/revision/"):
                self._json(_about(name, files))
            elif path.startswith(f"{prefix}/tree/"):
                folder = path.removeprefix(f"{prefix}/tree/").partition("/")[2]
                self._json(_tree(files, folder, recursive="recursive=" in self.path.lower()))
            else:
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
            try:
                asked = json.loads(body)["paths"]
            except ValueError:
                asked = urllib.parse.parse_qs(body)["paths"]
            entries = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            self._json([entries[path] for path in asked if path in entries])

        def _file(self, path: str) -> None:
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

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _about(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "_id": "0" * 24,
        "id": name,
        "author": name.partition("/")[0],
        "sha": SHA,
        "lastModified": "2024-01-08T11:33:10.000Z",
        "createdAt": "2023-11-02T16:18:08.000Z",
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 1,
        "likes": 1,
        "tags": [],
        "siblings": [{"rfilename": path} for path in files],
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
