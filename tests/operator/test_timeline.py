from __future__ import annotations

import pytest

from lora_dpo_api.status import TIMELINE_LIMIT, JobPhase, PhaseTime
from lora_dpo_operator.stage import Milestone
from lora_dpo_operator.timeline import advance

from .builders import at

P = JobPhase


def path(*steps: tuple[JobPhase, int]) -> list[Milestone]:
    return [Milestone(phase, at(seconds)) for phase, seconds in steps]


def line(*steps: tuple[JobPhase, int]) -> list[PhaseTime]:
    return advance([], path(*steps), new_attempt=False)


def told(timeline: list[PhaseTime]) -> list[tuple[JobPhase, int]]:
    return [(entry.phase, round((entry.started - at(0)).total_seconds())) for entry in timeline]


BEGUN = ((P.PENDING, 0), (P.PREPARING, 1), (P.INITIALIZING, 5))
CASES = {
    "nothing new": (BEGUN, BEGUN, False, list(BEGUN)),
    "one phase on": (BEGUN, (*BEGUN, (P.RUNNING, 9)), False, [*BEGUN, (P.RUNNING, 9)]),
    "several, unseen": (
        BEGUN[:1],
        (*BEGUN, (P.RUNNING, 9), (P.EXPORTING, 12)),
        False,
        [*BEGUN, (P.RUNNING, 9), (P.EXPORTING, 12)],
    ),
    "a time before the last one is moved": (
        (*BEGUN, (P.RUNNING, 9)),
        (*BEGUN, (P.RUNNING, 9), (P.EXPORTING, 7)),
        False,
        [*BEGUN, (P.RUNNING, 9), (P.EXPORTING, 9)],
    ),
    "a restart": (
        (*BEGUN, (P.RUNNING, 9)),
        (*BEGUN[:2], (P.RESTARTING, 20), (P.INITIALIZING, 21), (P.RUNNING, 25)),
        True,
        [*BEGUN, (P.RUNNING, 9), (P.RESTARTING, 20), (P.INITIALIZING, 21), (P.RUNNING, 25)],
    ),
    "after a restart": (
        (*BEGUN, (P.RUNNING, 9), (P.RESTARTING, 20), (P.INITIALIZING, 21)),
        (*BEGUN[:2], (P.RESTARTING, 20), (P.INITIALIZING, 21), (P.RUNNING, 25)),
        False,
        [*BEGUN, (P.RUNNING, 9), (P.RESTARTING, 20), (P.INITIALIZING, 21), (P.RUNNING, 25)],
    ),
    "a failure on the way": (BEGUN, (*BEGUN[:2], (P.FAILED, 8)), False, [*BEGUN, (P.FAILED, 8)]),
}


@pytest.mark.parametrize(("before", "way", "new_attempt", "expected"), CASES.values(), ids=CASES.keys())
def test_the_timeline_goes_on(before: tuple, way: tuple, new_attempt: bool, expected: list) -> None:  # type: ignore[type-arg]
    found = advance(line(*before), path(*way), new_attempt=new_attempt)
    assert told(found) == expected
    assert [entry.ended for entry in found[:-1]] == [entry.started for entry in found[1:]]


def test_only_a_finished_phase_ends_by_itself() -> None:
    assert line(*BEGUN)[-1].ended is None
    assert line(*BEGUN, (P.SUCCEEDED, 9))[-1].ended == at(9)


def test_it_is_bounded_and_keeps_the_newest() -> None:
    timeline = line(*BEGUN)
    for number in range(100):
        way = path((P.RESTARTING, 10 + number), (P.INITIALIZING, 10 + number))
        timeline = advance(timeline, way, new_attempt=True)
    assert len(timeline) == TIMELINE_LIMIT
    assert timeline[-1].started == at(109)
