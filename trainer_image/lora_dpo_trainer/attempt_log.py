"""The last lines of an attempt's log, kept in the output for when the pod is gone."""

from __future__ import annotations

import collections
import logging
import os
import threading
from collections.abc import Mapping

from lora_dpo_api.protocol import ExitCode
from lora_dpo_trainer import distributed, errors, storage

LINES = 200
WRITE_SECONDS = 5.0
"""A store that does not answer must not hold back the end of an attempt."""

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
        self._lines: collections.deque[str] = collections.deque(maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record."""
        self._lines.extend(self.format(record).splitlines())

    def write(self, exit_code: int) -> None:
        """Write the lines to the output: those of the leading host always, of the others after a failure.

        Never raises, and takes no longer than `WRITE_SECONDS`: how an attempt ends is decided before.
        """
        if self.output_path is None:
            return
        try:
            placement = distributed.Placement.from_environment()
        except errors.TrainerError:
            placement = distributed.Placement()
        name = f"attempt-{placement.attempt}"
        if placement.process_id:
            if exit_code in (ExitCode.DONE, ExitCode.PREEMPTED):
                return
            name += f"-host-{placement.process_id}"
        url = storage.join(self.output_path, "logs", f"{name}.log")
        text = without_secrets("".join(f"{line}\n" for line in tuple(self._lines)), os.environ)
        writing = threading.Thread(target=_write, args=(url, text.encode()), name="attempt-log", daemon=True)
        writing.start()
        writing.join(WRITE_SECONDS)


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """A text without the values of variables that are named like secrets."""
    for name, value in environment.items():
        if len(value) >= 8 and any(word in name.upper() for word in _SECRET_NAMES):
            text = text.replace(value, f"<{name}>")
    return text


def _write(url: str, data: bytes) -> None:
    try:
        storage.write_bytes(url, data)
    except (errors.TrainerError, OSError) as error:
        _log.warning("The attempt's log could not be written to %s: %s", url, error)
