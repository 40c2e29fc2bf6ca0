"""Makes a real trainer fail after a step. Mounted as `sitecustomize`, which Python imports before it starts anything.

SABOTAGE           what happens: segfault, memory, hang or lie; nothing by default
SABOTAGE_STEP      after which step
SABOTAGE_ATTEMPTS  in which attempts, such as `0`; in all of them by default
SABOTAGE_PAUSE     seconds after each step, so that a job lasts and takes little of the machine
"""

from __future__ import annotations

import ctypes
import http.server
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

STEP = int(os.environ.get("SABOTAGE_STEP", "3"))
PAUSE = float(os.environ.get("SABOTAGE_PAUSE", "0"))
PROGRESS_PORT, TRUE_PORT = 9100, 9101
SEEN_SECONDS = 10
LIES_SECONDS = 60
"""So long the liar lies; then it takes no connection any more."""
LONG_AGO = "2026-01-01T00:00:00Z"


def segfault() -> None:
    """Read where there is nothing: the first process of a container ignores signals that it sends itself.

    Whoever asks for the progress sees the last step first: nothing else would tell of it.
    """
    time.sleep(SEEN_SECONDS)
    ctypes.string_at(0)


def memory() -> None:
    """Use memory until the kernel ends it."""
    held = []
    while True:
        held.append(b"x" * (64 << 20))


def hang() -> None:
    """Make no step any more; whoever asks is answered."""
    while True:
        time.sleep(60)


class Liar(http.server.BaseHTTPRequestHandler):
    """Stands between the progress and whoever reads it: honest until the step, then never again."""

    told = 0
    silent_at = float("inf")

    def do_GET(self) -> None:
        """Answer with the truth, with an older one once, and with what no reader should believe."""
        with urllib.request.urlopen(f"http://127.0.0.1:{TRUE_PORT}{self.path}") as answer:
            truth = json.loads(answer.read())
        if truth["step"] < STEP:
            self._send(json.dumps(truth).encode())
            return
        if time.monotonic() > Liar.silent_at:
            self.server.shutdown()
            self.server.server_close()
            return
        Liar.silent_at = min(Liar.silent_at, time.monotonic() + LIES_SECONDS)
        lies = (self._older, self._truth, self._not_a_number, self._huge, self._of_another_run, self._redirect)
        # Once an older report and the truth, then lies without end.
        chosen = Liar.told if Liar.told < len(lies) else 2 + Liar.told % (len(lies) - 2)
        Liar.told += 1
        lies[chosen](truth)

    def _truth(self, truth: dict[str, Any]) -> None:
        self._send(json.dumps(truth).encode())

    def _older(self, truth: dict[str, Any]) -> None:
        self._send(json.dumps(truth | {"step": 1, "updatedAt": LONG_AGO}).encode())

    def _not_a_number(self, truth: dict[str, Any]) -> None:
        self._send(json.dumps(truth | {"step": 1_000_000, "metrics": {"loss": float("nan")}}).encode())

    def _huge(self, truth: dict[str, Any]) -> None:
        self._send(json.dumps(truth | {"step": 1_000_000, "filler": "x" * (100 << 20)}).encode())

    def _of_another_run(self, truth: dict[str, Any]) -> None:
        self._send(json.dumps(truth | {"step": 1_000_000, "runId": "somebody/else"}).encode())

    def _redirect(self, truth: dict[str, Any]) -> None:
        self.send_response(302)
        self.send_header("Location", f"http://127.0.0.1:{TRUE_PORT}/status")
        self.end_headers()

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def lie() -> None:
    """Nothing after a step: the liar answers from the start."""


KINDS: Mapping[str, Callable[[], None]] = {"segfault": segfault, "memory": memory, "hang": hang, "lie": lie}


def install() -> None:
    """Let it happen when the trainer records the step."""
    chosen = KINDS.get(os.environ.get("SABOTAGE", ""))
    attempts = os.environ.get("SABOTAGE_ATTEMPTS", "")
    if attempts and os.environ.get("LORADPO_RESTART_ATTEMPT") not in attempts.split(","):
        chosen = None
    if chosen is lie:
        os.environ["LORADPO_PROGRESS_PORT"] = str(TRUE_PORT)
        server = http.server.ThreadingHTTPServer(("", PROGRESS_PORT), Liar)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    from lora_dpo_trainer import progress

    record = progress.Progress.record

    def sabotaged(self: progress.Progress, step: int, *arguments: Any, **named: Any) -> None:
        record(self, step, *arguments, **named)
        time.sleep(PAUSE)
        if chosen is not None and step == STEP:
            chosen()

    progress.Progress.record = sabotaged  # type: ignore[method-assign]


if os.environ.get("LORADPO_PHASE") == "train":
    install()
