from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lora_dpo_trainer import storage
from lora_dpo_trainer.history import History


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    return str(tmp_path) if request.param == "local" else memory


def lines(output: str) -> list[dict[str, float | None]]:
    text = storage.read_bytes(storage.join(output, "metrics.jsonl"))
    return [json.loads(line) for line in text.splitlines()]


def test_every_step_is_a_line(output: str) -> None:
    history = History(output)
    history.add(1, {"dpo_loss": 0.5})
    history.add(2, {"dpo_loss": math.nan})
    history.flush()
    assert lines(output) == [{"step": 1, "dpo_loss": 0.5}, {"step": 2, "dpo_loss": None}]


def test_a_resumed_run_drops_what_it_does_again(output: str) -> None:
    first = History(output)
    for step in range(1, 5):
        first.add(step, {"attempt": 1.0})
    first.flush()
    second = History(output, resumed_from=2)
    second.add(3, {"attempt": 2.0})
    second.flush()
    assert lines(output) == [{"step": 1, "attempt": 1.0}, {"step": 2, "attempt": 1.0}, {"step": 3, "attempt": 2.0}]


def test_an_evaluation_that_will_be_done_again_is_dropped_too(output: str) -> None:
    first = History(output)
    first.add(2, {"dpo_loss": 0.5})
    first.add(2, {"eval_dpo_loss": 0.6})
    first.flush()
    History(output, resumed_from=2, evaluated=True).flush()
    assert len(lines(output)) == 2
    History(output, resumed_from=2, evaluated=False).flush()
    assert lines(output) == [{"step": 2, "dpo_loss": 0.5}]


def test_lines_that_are_none_are_dropped(output: str) -> None:
    storage.write_bytes(storage.join(output, "metrics.jsonl"), b'{"step": 1}\nnonsense\n3\n{}\n{"step": 2}\n')
    History(output, resumed_from=2).flush()
    assert lines(output) == [{"step": 1}, {"step": 2}]


def test_a_fresh_run_starts_a_fresh_file(output: str) -> None:
    History(output).add(1, {"attempt": 1.0})
    History(output).flush()
    assert lines(output) == []


def test_a_line_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "dpo_')
    History(str(tmp_path), resumed_from=2)
    assert lines(str(tmp_path)) == [{"step": 1}]
