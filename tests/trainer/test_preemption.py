from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lora_dpo_trainer import preemption


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_process_hears_the_signal_and_keeps_running(number: signal.Signals) -> None:
    watch = preemption.watch(1)
    assert not watch.reached()
    os.kill(os.getpid(), number)
    assert watch.reached()
    assert watch.reached()


def test_several_processes_leave_the_signal_to_jax() -> None:
    before = signal.getsignal(signal.SIGTERM)
    watch = preemption.watch(2)
    assert signal.getsignal(signal.SIGTERM) is before
    assert isinstance(watch, preemption.SyncPointWatch)
