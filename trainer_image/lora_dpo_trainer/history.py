"""`metrics.jsonl` in the output: one line a logged step, whole again after a resume.

A local file is appended to. Object stores cannot append, so there the lines so far are kept in memory (about 1 kB a
step) and the object is replaced, at most every half minute and whenever a checkpoint is made.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping

from lora_dpo_trainer import storage

METRICS_FILE = "metrics.jsonl"
_REWRITE_SECONDS = 30.0


class History:
    """Writes the metrics of a run.

    Args:
        output_path: URL of the output.
        resumed_from: Steps that are complete already; lines of later ones are dropped, for they will be redone.
        evaluated: Whether the evaluation after the last of them is complete too, if there was one.
    """

    def __init__(self, output_path: str, *, resumed_from: int = 0, evaluated: bool = True) -> None:
        self._url = storage.join(output_path, METRICS_FILE)
        self._lines = _kept(self._url, resumed_from, evaluated)
        self._written = time.monotonic()
        self._dirty = False
        storage.write_bytes(self._url, b"".join(self._lines))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step; NaN and infinities become null."""
        cleaned = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **cleaned}).encode() + b"\n"
        if storage.is_local(self._url):
            storage.append_local(storage.local_path(self._url), line)
            return
        self._lines.append(line)
        self._dirty = True
        if time.monotonic() - self._written > _REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make every line so far visible."""
        if self._dirty:
            storage.write_bytes(self._url, b"".join(self._lines))
            self._written = time.monotonic()
            self._dirty = False

    def close(self) -> None:
        """Flush for the last time."""
        self.flush()


def _kept(url: str, resumed_from: int, evaluated: bool) -> list[bytes]:
    if resumed_from == 0:
        return []
    try:
        lines = storage.read_bytes(url).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [line for line in lines if _counts(line, resumed_from, evaluated)]


def _counts(line: bytes, resumed_from: int, evaluated: bool) -> bool:
    try:
        values = json.loads(line)
        step = values["step"]
    except (ValueError, KeyError, TypeError):
        return False
    # A last line without its end was cut by a crash.
    if not line.endswith(b"\n") or not isinstance(step, int) or step > resumed_from:
        return False
    return step < resumed_from or evaluated or not any(name.startswith("eval_") for name in values)
