"""A SIGTERM, heard by real processes in whatever they are doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import os, signal, sys, time
from lora_dpo_api.protocol import Phase
from lora_dpo_trainer import exits, preemption
notice = preemption.Notice(lambda error: exits.fail(error, Phase.TRAIN))
{before}
print("ready", flush=True)
{after}
print("end", flush=True)
os._exit(0)
"""
IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)"
"""Never comes back to the main thread's Python within this test: a handler there would not run."""


def signalled(before: str, after: str, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, float]:
    """Exit code, log and seconds of a process that gets a signal when it is ready."""
    code = SCRIPT.format(before=before, after=after)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(number)
        try:
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, rest, time.monotonic() - began


@pytest.mark.parametrize("after", ["time.sleep(60)", IN_C], ids=["in Python", "inside of C"])
def test_a_process_with_nothing_to_save_leaves_at_once(after: str) -> None:
    code, _, seconds = signalled("", after)
    assert code == 42
    assert seconds < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_process_that_trains_hears_the_signal_and_may_end_by_itself(number: signal.Signals) -> None:
    before = "watch = preemption.watch(notice, processes=1, leads=True); notice.protect(lambda: 'Lost.')"
    after = "while not watch.reached(): time.sleep(0.01)"
    code, log, seconds = signalled(before, after, number)
    assert (code, log) == (0, "end\n")
    assert seconds < 5


def test_a_process_that_does_not_end_in_time_is_ended_with_what_counts() -> None:
    before = "import logging; logging.basicConfig(); logging.getLogger().setLevel('INFO'); "
    before += "preemption.SAVE_SECONDS = 1.0; notice.protect(lambda: 'Stopped after step 7.')"
    code, log, seconds = signalled(before, IN_C)
    assert code == 42
    assert "Preempted: Stopped after step 7." in log
    assert 0.9 <= seconds < 6


def test_ctrl_c_is_left_to_the_phases_that_save_nothing() -> None:
    # Who starts the tests in the background of a shell has them ignore it.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code, log, _ = signalled(heard, "time.sleep(60)", signal.SIGINT)
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in log
