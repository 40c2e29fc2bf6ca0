"""Follows a LoraDpoJob on the terminal until it has finished.

On a terminal a table changes in place; elsewhere (a log, a pipe) every change is a line of its own.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ldj.errors import FollowTimeoutError
from lora_dpo_api.protocol import Metrics
from lora_dpo_api.status import LoraDpoJobStatus, PhaseTime

ROWS = 12
"""Newest changes that the live table shows."""

COLUMNS = ("time", "phase", "doing", "step", "loss", "margin", "accuracy", "ETA")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What a user reads of a job at one moment; absent values are empty."""

    phase: str = "Pending"
    doing: str = ""
    step: str = ""
    loss: str = ""
    margin: str = ""
    accuracy: str = ""
    eta: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The values in the order of `COLUMNS`, without the time."""
        return (self.phase, self.doing, self.step, self.loss, self.margin, self.accuracy, self.eta)


def row(status: LoraDpoJobStatus) -> Row:
    """The row that shows a status."""
    metrics = status.metrics or Metrics()
    running = status.phase is not None and not status.phase.finished
    return Row(
        phase=status.phase.value if status.phase else "Pending",
        doing=(status.trainer_state or "") if running else "",
        step=status.progress or "",
        loss=number(metrics.loss),
        margin=number(metrics.reward_margin),
        accuracy=number(metrics.accuracy),
        eta=(status.eta or "") if running else "",
    )


def number(value: float | None) -> str:
    """A metric as the printer columns show it: up to 4 significant digits."""
    return "" if value is None else f"{value:.4g}"


def follow(
    read: Callable[[], LoraDpoJobStatus],
    console: Console,
    *,
    timeout: float,
    interval: float = 1.0,
    changed: Callable[[Row], None] | None = None,
) -> LoraDpoJobStatus:
    """Show each change of a job until it has succeeded or failed.

    Args:
        read: reads the job's status.
        console: where to show it.
        timeout: seconds after which to give up.
        interval: seconds between two readings.
        changed: called with each change.

    Returns:
        The final status.

    Raises:
        FollowTimeoutError: the job hasn't finished in time.
    """
    deadline = time.monotonic() + timeout
    changes: list[tuple[str, Row]] = []
    live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
    if live is None:
        console.print(line(("time", Row(*COLUMNS[1:]))), highlight=False, soft_wrap=True)
    else:
        live.start()
    try:
        while True:
            status = read()
            current = row(status)
            if not changes or current != changes[-1][1]:
                changes.append((datetime.datetime.now().strftime("%H:%M:%S"), current))
                if live is None:
                    console.print(line(changes[-1]), highlight=False, soft_wrap=True)
                else:
                    live.update(table(changes[-ROWS:]))
                if changed is not None:
                    changed(current)
            if status.phase is not None and status.phase.finished:
                return status
            if time.monotonic() > deadline:
                raise FollowTimeoutError(
                    f"The job is {current.phase} {current.step} after {timeout:.0f} s: {status.message or 'no message'}"
                )
            time.sleep(interval)
    finally:
        if live is not None:
            live.stop()


def table(changes: Iterable[tuple[str, Row]]) -> Table:
    """The live table, newest change last."""
    view = Table(*COLUMNS)
    for moment, entry in changes:
        view.add_row(moment, *entry.cells)
    return view


def line(change: tuple[str, Row]) -> str:
    """One change as a line of fixed columns."""
    moment, entry = change
    widths = (12, 11, 9, 9, 9, 9, 6)
    return (
        f"{moment:8}  " + "  ".join(f"{cell:{width}}" for cell, width in zip(entry.cells, widths, strict=True)).rstrip()
    )


def timeline(phases: Iterable[PhaseTime]) -> Table:
    """The phases of a job with their times."""
    view = Table("phase", "from", "to", "seconds", "because")
    for entry in phases:
        ended = entry.ended
        view.add_row(
            entry.phase.value,
            entry.started.astimezone().strftime("%H:%M:%S"),
            ended.astimezone().strftime("%H:%M:%S") if ended else "",
            f"{(ended - entry.started).total_seconds():.0f}" if ended else "",
            entry.reason or "",
        )
    return view
