"""A SIGTERM becomes a moment on which every host agrees, and a time after which the process is gone.

Spot capacity leaves 15 s. `Watch` lets all hosts stop at the same boundary; where none comes in time, `Notice` ends
the process all the same, with its exit code and a sentence about what counts, before somebody's SIGKILL does.

One process: a handler of ours. Several: JAX's preemption service, which installs its own handler when the gang is
joined (a handler of ours would silence it) and tells every host the same step.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from lora_dpo_trainer import errors

SAVE_SECONDS = 12.0
"""From the signal to the end of the save, at the latest."""

AGREE_SECONDS = 5.0
"""So long several hosts that have nothing to save may take to stop at the same boundary."""

LEAD_SECONDS = 1.0
"""The leading host goes so much later than the others: its end is noticed at once, and would make crashes of theirs."""

_POLL_SECONDS = 0.25
_NOTICE_KEY = "RECEIVED_PREEMPTION_NOTICE"
"""Where JAX's preemption service notes a host's SIGTERM for all (XLA's preemption_sync_manager.cc)."""

_NOTHING = "Stopped by a SIGTERM before there was anything to save."


class Notice:
    """Hears the SIGTERM in a thread of its own, and ends the process when its time is over.

    A handler in Python runs only between two bytecodes of the main thread, which may be inside a compilation or a
    step for minutes; the descriptor that the C handler writes to is heard at once.

    Args:
        leave: Ends the process; called from the thread.
    """

    def __init__(self, leave: Callable[[errors.Preempted], object]) -> None:
        self._leave = leave
        self._came = threading.Event()
        self._heard_at = 0.0
        self._last_words: Callable[[], str] | None = None
        self._gang: tuple[Callable[[], bool], bool] | None = None
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        signal.signal(signal.SIGTERM, _heard_by_the_thread)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="preemption", daemon=True).start()

    @property
    def came(self) -> bool:
        """Whether the signal has come, to this host or to another of the gang."""
        return self._came.is_set()

    @property
    def seconds(self) -> float:
        """Since the signal; 0 before it."""
        return time.monotonic() - self._heard_at if self.came else 0.0

    def join_gang(self, *, leads: bool) -> None:
        """From now on JAX has the signal: ask its coordination service. Needs `jax.distributed`."""
        from jax._src import distributed
        from jax.errors import JaxRuntimeError

        client = distributed.global_state.client
        assert client is not None

        def told() -> bool:
            try:
                client.key_value_try_get(_NOTICE_KEY)
            except JaxRuntimeError:  # nobody was told, or the gang is ending
                return False
            return True

        self._gang = told, leads

    def also_keyboard(self) -> None:
        """Take Ctrl-C for a SIGTERM."""
        signal.signal(signal.SIGINT, _heard_by_the_thread)

    def protect(self, last_words: Callable[[], str]) -> None:
        """There is something to save from now on: give it `SAVE_SECONDS`.

        Args:
            last_words: Called from the thread when they are over: a sentence about what counts now.
        """
        self._last_words = last_words

    def _run(self) -> None:
        while not (self._signalled() or self._told()):
            pass
        self._heard_at = time.monotonic()
        self._came.set()
        while self.seconds < self._allowed():
            time.sleep(_POLL_SECONDS)
        self._leave(errors.Preempted(_NOTHING if self._last_words is None else self._last_words()))

    def _allowed(self) -> float:
        if self._gang is None:
            return 0.0 if self._last_words is None else SAVE_SECONDS
        seconds = AGREE_SECONDS if self._last_words is None else SAVE_SECONDS
        return seconds + LEAD_SECONDS if self._gang[1] else seconds

    def _signalled(self) -> bool:
        self._receiver.settimeout(_POLL_SECONDS)
        try:
            numbers = self._receiver.recv(1)
        except TimeoutError:
            return False
        if numbers[0] == signal.SIGTERM:
            return True
        return numbers[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is _heard_by_the_thread

    def _told(self) -> bool:
        return self._gang is not None and self._gang[0]()


class Watch(Protocol):
    """Asks whether it is time to go."""

    def reached(self) -> bool:
        """Whether to stop now; the same on every host, each of which must ask the same number of times."""
        ...


class FlagWatch:
    """For one process."""

    def __init__(self, notice: Notice) -> None:
        self._notice = notice

    def reached(self) -> bool:
        """Whether the signal has come."""
        return self._notice.came


class SyncPointWatch:
    """For several processes under `jax.distributed`."""

    def __init__(self) -> None:
        self._asked = 0

    def reached(self) -> bool:
        """Whether this is the question, counted from the start, on which the preemption service lets all agree."""
        from jax.experimental import multihost_utils

        self._asked += 1
        return bool(multihost_utils.reached_preemption_sync_point(self._asked))


def watch(notice: Notice, *, processes: int, leads: bool) -> Watch:
    """The way of this gang; to be asked for after it has come together."""
    if processes == 1:
        notice.also_keyboard()
        return FlagWatch(notice)
    notice.join_gang(leads=leads)
    return SyncPointWatch()


def _heard_by_the_thread(_number: int, _frame: FrameType | None) -> None:
    """Python's part of a signal; without a handler there would be no C handler to write to the descriptor."""
