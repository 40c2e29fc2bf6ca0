"""The benchmark's reading of a profile, on a trace written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.trainer import our_profile


def _thread(tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}}


def _event(tid: int, name: str, start: float, duration: float) -> dict[str, Any]:
    return {"ph": "X", "name": name, "pid": 1, "tid": tid, "ts": start, "dur": duration}


def test_time_belongs_to_the_innermost_operation_of_xla_s_threads() -> None:
    events = [
        _thread(1, "tf_XLAEigen/1"), _thread(2, "tf_XLAEigen/2"), _thread(3, "python"),
        _event(1, "while.3", 0, 100),
        _event(1, "ynn_fusion.12", 10, 40),
        _event(1, "SlinkyThreadPool::Await", 30, 10),
        _event(1, "copy_bitcast_fusion", 50, 30),
        _event(2, "subtract_exponential_fusion.1", 5, 20),
        _event(2, "dot.7", 25, 40),
        _event(3, "$threading.py:10 wait", 0, 1000),
    ]  # fmt: skip
    assert our_profile.shares(events) == pytest.approx(
        {"products": 80 / 160, "copies": 30 / 160, "waiting and control": 30 / 160, "other arithmetic": 20 / 160}
    )
