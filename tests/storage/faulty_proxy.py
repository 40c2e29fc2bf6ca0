"""An HTTP proxy before an object store, which delays, refuses, cuts and drops what a test tells it to."""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

type Fault = Callable[[http.server.BaseHTTPRequestHandler, bytes, "Forward"], None]
"""Answers a request in the store's place; gets its body, and how to forward it."""

type Forward = Callable[[bytes], http.client.HTTPResponse]
type Plan = Callable[[str, str], Fault | None]
"""Method and path of a request → what befalls it."""


def answer(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    """Send a whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def refused(status: int) -> Fault:
    """The store answers with an error."""
    body = f'{{"error": {{"code": {status}, "message": "injected"}}}}'.encode()
    return lambda handler, _body, _forward: answer(handler, status, body)


def reset(handler: http.server.BaseHTTPRequestHandler, _body: bytes, _forward: Forward) -> None:
    """The connection is reset before an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RD)
    handler.connection.close()


def lost_answer(handler: http.server.BaseHTTPRequestHandler, body: bytes, forward: Forward) -> None:
    """The store did what it was asked for, but nobody hears of it."""
    forward(body).read()
    reset(handler, body, forward)


def half_stored(handler: http.server.BaseHTTPRequestHandler, body: bytes, forward: Forward) -> None:
    """The store takes half of an upload for the whole, and says that all is well."""
    found = forward(body[: len(body) // 2])
    answer(handler, found.status, found.read())


def half_sent(handler: http.server.BaseHTTPRequestHandler, body: bytes, forward: Forward) -> None:
    """An answer that breaks off in the middle."""
    found = forward(body).read()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(found)))
    handler.end_headers()
    handler.wfile.write(found[: len(found) // 2])
    handler.wfile.flush()
    reset(handler, body, forward)


def slow(seconds: float) -> Fault:
    """The store takes its time."""

    def wait(handler: http.server.BaseHTTPRequestHandler, body: bytes, forward: Forward) -> None:
        time.sleep(seconds)
        found = forward(body)
        answer(handler, found.status, found.read())

    return wait


def first(count: int, fault: Fault, *, method: str | None = None, path: str = "") -> Plan:
    """The first so many requests of a kind meet a fault, the others none."""
    left = [count]

    def plan(found: str, url: str) -> Fault | None:
        if (method is None or found == method) and path in url and left[0] > 0:
            left[0] -= 1
            return fault
        return None

    return plan


def for_seconds(seconds: float, fault: Fault) -> Plan:
    """Every request within a time from the first one on."""
    began: list[float] = []

    def plan(_method: str, _url: str) -> Fault | None:
        if not began:
            began.append(time.monotonic())
        return fault if time.monotonic() - began[0] < seconds else None

    return plan


class FaultyProxy:
    """Serves on a free port of this machine.

    Attributes:
        plan: What befalls each request.
        seen: `METHOD path` of each request so far.
        url: Its address.
    """

    def __init__(self, target: str) -> None:
        self.plan: Plan = lambda method, url: None
        self.seen: list[str] = []
        self._target = urlsplit(target)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self._body()
                proxy.seen.append(f"{self.command} {self.path}")
                fault = proxy.plan(self.command, self.path)
                if fault is not None:
                    fault(self, body, self._forward)
                    return
                found = self._forward(body)
                content = found.read()
                self.send_response(found.status)
                for name, value in found.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any  # noqa: N815

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _forward(self, body: bytes) -> http.client.HTTPResponse:
                connection = http.client.HTTPConnection(proxy._target.netloc, timeout=60)
                skipped = ("transfer-encoding", "content-length", "connection", "host", "accept-encoding")
                headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
                connection.request(self.command, self.path, body=body, headers=headers | {"Connection": "close"})
                return connection.getresponse()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler
