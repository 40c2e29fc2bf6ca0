"""The last lines of an attempt's log, kept in the output for when the pod is gone."""

from __future__ import annotations

import collections
import logging
import os
import threading
import time
from collections.abc import Mapping

from lora_dpo_api.protocol import ExitCode
from lora_dpo_trainer import distributed, errors, storage

LINES = 200
WRITE_SECONDS = 5.0
"""A store that does not answer must not hold back the end of an attempt."""

REPEAT_SECONDS = 20.0
"""An attempt that is killed is missing so much of its log, and no more."""

_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS")
_log = logging.getLogger(__name__)


class AttemptLog(logging.Handler):
    """Remembers the last lines of everything that is logged.

    Attributes:
        output_path: URL of the output, as soon as it is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.output_path: str | None = None
        self._unwritten = False
        self._one_writer = threading.Lock()
        self._lines: collections.deque[str] = collections.deque(maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record."""
        self._lines.extend(self.format(record).splitlines())
        self._unwritten = True

    def start(self, output_path: str) -> None:
        """Write the leading host's lines to the output from now on, and again whenever there are new ones.

        Nobody writes anything after a SIGKILL, or when JAX ends a process whose peer is gone.
        """
        self.output_path = output_path
        if _placement().process_id == 0:
            threading.Thread(target=self._repeat, name="attempt-log", daemon=True).start()

    def write(self, exit_code: int, *, seconds: float = WRITE_SECONDS) -> None:
        """Write the lines to the output: those of the leading host always, of the others after a failure.

        Never raises, and takes no longer than `seconds`: how an attempt ends is decided before.
        """
        if self.output_path is None:
            return
        placement = _placement()
        if placement.process_id and exit_code in (ExitCode.DONE, ExitCode.PREEMPTED):
            return
        writing = threading.Thread(target=self._write, args=(placement,), name="attempt-log-end", daemon=True)
        writing.start()
        writing.join(seconds)

    def _repeat(self) -> None:
        while True:
            time.sleep(REPEAT_SECONDS)
            if self._unwritten:
                self._write(_placement())

    def _write(self, placement: distributed.Placement) -> None:
        assert self.output_path is not None
        name = f"attempt-{placement.attempt}" + (f"-host-{placement.process_id}" if placement.process_id else "")
        url = storage.join(self.output_path, "logs", f"{name}.log")
        with self._one_writer:
            self._unwritten = False
            text = without_secrets("".join(f"{line}\n" for line in tuple(self._lines)), os.environ)
            try:
                storage.write_bytes(url, text.encode())
            except (errors.TrainerError, OSError) as error:
                _log.warning("The attempt's log could not be written to %s: %s", url, error)


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """A text without the values of variables that are named like secrets."""
    for name, value in environment.items():
        if len(value) >= 8 and any(word in name.upper() for word in _SECRET_NAMES):
            text = text.replace(value, f"<{name}>")
    return text


def _placement() -> distributed.Placement:
    try:
        return distributed.Placement.from_environment()
    except errors.TrainerError:
        return distributed.Placement()
