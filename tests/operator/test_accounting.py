"""What a job has waited for and used: by its timeline alone."""

from __future__ import annotations

from typing import Any

import pytest

from lora_dpo_api.status import TIMELINE_LIMIT, JobPhase, LoraDpoJobStatus, SliceStatus
from lora_dpo_operator import accounting
from lora_dpo_operator.accounting import Account, Outcome
from lora_dpo_operator.stage import Milestone
from lora_dpo_operator.timeline import advance

from .builders import at

P = JobPhase
NOW = at(1000)


def status(*steps: tuple[JobPhase, int], chips: int = 0, **fields: Any) -> LoraDpoJobStatus:
    """The status of a job that came into these phases at these seconds."""
    line = advance([], [Milestone(phase, at(seconds)) for phase, seconds in steps], new_attempt=False)
    hardware = SliceStatus(description="x", chips=chips)
    return LoraDpoJobStatus(phase=steps[-1][0] if steps else None, timeline=line, slice=hardware, **fields)


PREPARED = ((P.PENDING, 0), (P.PREPARING, 10))
CASES: dict[str, tuple[LoraDpoJobStatus, Account]] = {
    "not seen yet": (
        LoraDpoJobStatus(),
        Account(outcome=Outcome.ACTIVE, queued=0, to_first_step=None, held=0, useful=0, chip=0),
    ),
    "preparing holds no slice": (
        status(*PREPARED, chips=8),
        Account(outcome=Outcome.ACTIVE, queued=0, to_first_step=None, held=0, useful=0, chip=0),
    ),
    "still queued": (
        status(*PREPARED, (P.QUEUED, 100), chips=8),
        Account(outcome=Outcome.ACTIVE, queued=900, to_first_step=None, held=0, useful=0, chip=0),
    ),
    "running": (
        status(*PREPARED, (P.QUEUED, 100), (P.INITIALIZING, 300), (P.RUNNING, 400), chips=8, step=50),
        Account(outcome=Outcome.ACTIVE, queued=200, to_first_step=400, held=700, useful=600, chip=5600),
    ),
    "done: an export holds no slice": (
        status(
            *PREPARED, (P.INITIALIZING, 100), (P.RUNNING, 200), (P.EXPORTING, 500), (P.SUCCEEDED, 600), chips=4, step=9
        ),
        Account(outcome=Outcome.SUCCEEDED, queued=0, to_first_step=200, held=400, useful=300, chip=1600),
    ),
    "restarted: steps computed twice are no use": (
        status(
            *PREPARED,
            (P.INITIALIZING, 100),
            (P.RUNNING, 200),
            (P.RESTARTING, 500),
            (P.INITIALIZING, 510),
            (P.RUNNING, 600),
            (P.FAILED, 900),
            step=80,
            steps_lost=20,
        ),
        Account(outcome=Outcome.FAILED, queued=0, to_first_step=200, held=800, useful=480, chip=0),
    ),
    "suspended in between": (
        status(*PREPARED, (P.INITIALIZING, 100), (P.RUNNING, 200), (P.SUSPENDED, 300), chips=2, step=3),
        Account(outcome=Outcome.ACTIVE, queued=0, to_first_step=200, held=200, useful=100, chip=400),
    ),
}


@pytest.mark.parametrize(("job", "account"), CASES.values(), ids=CASES.keys())
def test_a_jobs_times_follow_from_its_timeline(job: LoraDpoJobStatus, account: Account) -> None:
    assert accounting.of(job, NOW) == account


def test_a_phase_that_begins_in_the_future_takes_no_time_yet() -> None:
    assert accounting.of(status(*PREPARED, (P.INITIALIZING, 2000)), NOW).held == 0


def test_a_job_that_restarted_very_often_keeps_what_its_slice_was_held_for() -> None:
    restarts = [step for time in range(200, 800, 4) for step in ((P.RESTARTING, time), (P.RUNNING, time + 2))]
    job = status(*PREPARED, (P.INITIALIZING, 100), (P.RUNNING, 150), *restarts, chips=4, step=5, running_since=at(100))
    assert len(job.timeline) == TIMELINE_LIMIT
    account = accounting.of(job, NOW)
    assert (account.held, account.chip) == (900, 3600)
    assert (account.queued, account.to_first_step, account.useful) == (None, None, None)
