"""Real trainer processes that are killed, and what their run makes; `make chaos-trainer` is the long form."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from lora_dpo_api.protocol import TrainerState
from scripts import chaos_trainer
from scripts.chaos_trainer import Moment

STEPS = 30
MOMENTS = [
    Moment(signal.SIGTERM, TrainerState.REFERENCE),
    Moment(signal.SIGKILL, TrainerState.TRAINING, lines=3),
    Moment(signal.SIGTERM, TrainerState.EVALUATING),
    Moment(signal.SIGKILL, TrainerState.EVALUATING, lines=22),
    Moment(signal.SIGTERM, TrainerState.TRAINING, lines=24),
    Moment(signal.SIGKILL, TrainerState.SAVING),
]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_adapter_and_history_bit_for_bit(tmp_path: Path) -> None:
    outcome = chaos_trainer.chaos(tmp_path, MOMENTS, kills_per_run=len(MOMENTS), steps=STEPS)
    assert [kill.exit_code for kill in outcome.kills] == [42, -9, 42, -9, 42, -9]
    reference, _, evaluation, _, training, saving = outcome.kills
    assert (reference.state, reference.lines) == (TrainerState.REFERENCE, 0)
    assert reference.message.startswith("Stopped ")
    assert evaluation.state == TrainerState.EVALUATING
    assert evaluation.message == "Stopped after step 10 of 30; the state is saved."
    assert re.fullmatch(r"Stopped after step 2\d of 30; the state is saved.", training.message)
    assert saving.state == TrainerState.SAVING
    assert outcome.resumed_from_step == (STEPS,)  # what was killed while it wrote the adapter had saved its last step
