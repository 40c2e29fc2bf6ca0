"""What a person at the console sees of training: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lora_dpo_trainer import progress

LOG_SECONDS = 5.0
"""At most one line in this time, but for the first and the last step."""

_log = logging.getLogger(__name__)


class Lines:
    """Logs a line now and then.

    Args:
        shown: Knows how long it still takes.
        start: Steps complete before.
    """

    def __init__(self, shown: progress.Progress, start: int) -> None:
        self._shown = shown
        self._first = start + 1
        self._logged_at = 0.0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Maybe log a completed step."""
        total = self._shown.snapshot.total_steps
        if "dpo_loss" not in values:
            return
        if step in (self._first, total) or time.monotonic() - self._logged_at > LOG_SECONDS:
            self._logged_at = time.monotonic()
            _log.info("%s", line(step, total, values, self._shown.snapshot.eta_seconds))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """Draws a bar; whatever is logged meanwhile goes above it.

    Args:
        shown: Knows the run's number of steps.
        start: Steps complete before.
        terminal: Where to draw.
    """

    def __init__(self, shown: progress.Progress, start: int, terminal: TextIO) -> None:
        self._ends = contextlib.ExitStack()
        self._ends.enter_context(logging_redirect_tqdm())
        self._bar = tqdm(
            total=shown.snapshot.total_steps, initial=start, unit="step", file=terminal, dynamic_ncols=True
        )
        self._ends.callback(self._bar.close)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Move to a completed step."""
        if "dpo_loss" not in values:
            return
        told = {"loss": "dpo_loss", "margin": "reward_margin", "accuracy": "dpo_accuracy"}
        self._bar.set_postfix({name: f"{values[key]:.4f}" for name, key in told.items()}, refresh=False)
        self._bar.update(step - self._bar.n)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Leave the bar as it is."""
        self._ends.close()


def make(shown: progress.Progress, start: int) -> Lines | Bar:
    """The bar where there is a terminal, else lines."""
    return Bar(shown, start, sys.stdout) if sys.stdout.isatty() else Lines(shown, start)


def line(step: int, total: int, values: Mapping[str, float], eta: float | None) -> str:
    """One readable line about a step."""
    parts = [
        f"step {step}/{total}",
        f"loss {values['dpo_loss']:.4f}",
        f"margin {values['reward_margin']:.4f}",
        f"accuracy {values['dpo_accuracy']:.3f}",
        f"lr {values['learning_rate']:.2e}",
    ]
    if "pairs_per_second" in values:
        parts.append(f"{values['pairs_per_second']:.2f} pairs/s")
    if eta is not None:
        parts.append(f"eta {duration(eta)}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """A duration as people write it: 1h12m, 3m05s, 9s."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"
