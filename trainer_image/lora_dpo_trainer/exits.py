"""How a phase ends: one termination report, then `os._exit`.

`sys.exit` under `jax.distributed` turns into SIGABRT (134) after the shutdown timeout, and the kubelet would see a
crash; `os._exit` keeps the code.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from lora_dpo_api import protocol
from lora_dpo_api.protocol import ExitCode, Phase, TerminationReport
from lora_dpo_trainer import errors

TERMINATION_LOG_VARIABLE = "LORADPO_TERMINATION_LOG"
"""Overrides the path of the termination message, for runs outside Kubernetes."""

_log = logging.getLogger(__name__)
_leaving = threading.Lock()
"""Held by the thread that decides how the process ends; any other waits for that end."""


def run_phase(
    phase: Phase, body: Callable[[], TerminationReport], *, last: Callable[[int], None] | None = None
) -> NoReturn:
    """Run one phase to its end and leave the process with its exit code.

    Args:
        phase: Which phase `body` is; goes into the report of a failure.
        body: Does the work; returns the report of a success, raises a `TrainerError` for an expected end.
        last: Called with the exit code when all is decided and written; must not raise.
    """
    try:
        report = body()
    except errors.TrainerError as error:
        fail(error, phase, last=last)
    except KeyboardInterrupt:
        fail(errors.Preempted("Interrupted from the keyboard."), phase, last=last)
    except Exception as error:  # the process boundary: whatever is left is our bug, and the code must say so
        _log.error("%s", traceback.format_exc().rstrip())
        fail(errors.InternalError(f"{type(error).__name__}: {str(error)[:600] or 'no message'}"), phase, last=last)
    _leaving.acquire()
    write_report(report)
    if last is not None:
        last(report.exit_code)
    leave(report.exit_code)


def fail(error: errors.TrainerError, phase: Phase, *, last: Callable[[int], None] | None = None) -> NoReturn:
    """Say in one sentence why a phase ends, and leave the process with the error's exit code; from any thread."""
    _leaving.acquire()
    report = report_of(error, phase)
    _log.log(logging.INFO if report.exit_code == ExitCode.PREEMPTED else logging.ERROR, "%s", _sentence(report))
    write_report(report)
    if last is not None:
        last(report.exit_code)
    leave(report.exit_code)


def report_of(error: errors.TrainerError, phase: Phase) -> TerminationReport:
    """The termination report of an error."""
    message = error.message if len(error.message) <= 1024 else error.message[:1021] + "…"
    return TerminationReport(
        phase=phase, exit_code=int(error.exit_code), reason=error.reason, message=message, hint=error.hint
    )


def write_report(report: TerminationReport) -> None:
    """Write the termination message where the kubelet reads it; nothing when there is no such file."""
    override = os.environ.get(TERMINATION_LOG_VARIABLE)
    path = override or protocol.TERMINATION_LOG
    if not override and not os.access(path, os.W_OK):
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(report.to_termination_message())
    except OSError as error:
        _log.warning("The termination message could not be written to %s: %s", path, error)


def leave(code: int) -> NoReturn:
    """Flush what is buffered and leave without running exit handlers."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _sentence(report: TerminationReport) -> str:
    return f"{report.reason}: {report.message}" + (f" {report.hint}" if report.hint else "")
