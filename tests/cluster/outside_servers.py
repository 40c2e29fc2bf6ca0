"""What lies outside of the cluster, and fails: a way to the bucket, the hub, and a registry. Runs in a pod, alone.

`python outside_servers.py BUCKET_SERVER GATEWAY_PORT HUB_PORT REGISTRY_PORT`, beside `fake_hub.py`.

The gateway forwards to the storage server, unless a bucket has a rule: `GET /rules/BUCKET/RULE` sets one, and
`GET /rules/BUCKET/RULE/SECONDS` takes it back after so long.
"""

from __future__ import annotations

import http.client
import http.server
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping

import fake_hub

BUCKET = re.compile(r"/b/(?P<name>[^/?]+)")
WRITES = ("POST", "PUT", "PATCH", "DELETE")
RULES: Mapping[str, Callable[[str], tuple[int, str] | None]] = {
    "open": lambda method: None,
    "read-only": lambda method: (403, "no permission to write") if method in WRITES else None,
    "expired": lambda method: (401, "Invalid Credentials"),
    "away": lambda method: (503, "backend unavailable"),
}
"""Rule → what it answers to a method; None lets it through."""


class Gateway(http.server.BaseHTTPRequestHandler):
    """Forwards to the storage server what a bucket's rule lets through."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    rules: dict[str, tuple[str, float]] = {}  # noqa: RUF012 -- one table for all connections

    def _answer(self) -> None:
        if self.path.startswith("/rules/"):
            bucket, rule, *seconds = self.path.split("/")[2:]
            until = time.monotonic() + float(seconds[0]) if seconds else float("inf")
            self.rules[bucket] = (rule, until)
            self._send(200, f"{bucket} is {rule}".encode(), {})
            return
        body = self._body()
        refusal = self._refusal()
        if refusal is not None:
            code, message = refusal
            told = json.dumps({"error": {"code": code, "message": message, "errors": [{"message": message}]}})
            self._send(code, told.encode(), {"Content-Type": "application/json"})
            return
        server = urllib.parse.urlsplit(self.upstream)
        connection = http.client.HTTPConnection(server.hostname or "", server.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        passed = {name: value for name, value in answer.getheaders() if name.lower() not in _OF_A_HOP}
        self._send(answer.status, content, passed)
        connection.close()

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Every method is forwarded."""
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _refusal(self) -> tuple[int, str] | None:
        found = BUCKET.search(self.path)
        rule, until = self.rules.get(found["name"] if found else "", ("open", 0.0))
        return RULES[rule](self.command) if time.monotonic() < until else None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, code: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


_OF_A_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "server", "date")


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry that knows nobody."""

    protocol_version = "HTTP/1.1"
    # Nodes try TLS first, and take a status line for an answer for the sign that there is none.
    default_request_version = "HTTP/1.0"

    def do_GET(self) -> None:
        """Refuse, whoever asks."""
        told = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}).encode()
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="registry"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(told)

    def do_HEAD(self) -> None:
        """The same, without a body."""
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def main(upstream: str, *ports: str) -> None:
    """Serve until the pod is deleted."""
    Gateway.upstream = upstream
    handlers = (Gateway, fake_hub.handler(fake_hub.MODELS), Registry)
    for handler, port in zip(handlers, ports, strict=True):
        server = http.server.ThreadingHTTPServer(("", int(port)), handler)
        threading.Thread(target=server.serve_forever).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
