from __future__ import annotations

import pytest

from lora_dpo_api.protocol import Phase
from lora_dpo_operator.terminations import TEXT_LIMIT, first_failure, of_pod

from .builders import a_pod, prepare_report, progress, train_report


def test_a_running_pod_has_no_end() -> None:
    assert of_pod(a_pod(Phase.TRAIN, running=3)) is None


def test_a_report_is_parsed() -> None:
    end = of_pod(a_pod(Phase.PREPARE, ended=(5, 0), message=prepare_report()))
    assert end is not None
    assert end.report == prepare_report()
    assert end.text == ""


@pytest.mark.parametrize(
    "message",
    [
        "Segmentation fault",
        '{"phase": "train"}',
        prepare_report().to_json(),
        train_report(exit_code=0).to_json(),
        train_report(exit_code=139).to_json().replace('"Trained"', '""'),
    ],
    ids=["text", "incomplete", "another phase's", "another exit code's", "without a reason"],
)
def test_what_is_not_this_containers_report_is_only_text(message: str) -> None:
    end = of_pod(a_pod(Phase.TRAIN, ended=(5, 139), message=message))
    assert end is not None
    assert end.report is None
    assert end.text == message


@pytest.mark.parametrize(("updated", "kept"), [(5, True), (100, True), (100_000, False)])
def test_progress_from_the_future_is_left_out_of_a_report(updated: int, kept: bool) -> None:
    message = train_report(exit_code=70, progress=progress(updated=updated, since=1))
    end = of_pod(a_pod(Phase.TRAIN, ended=(5, 70), message=message))
    assert end is not None
    assert end.report is not None
    assert end.report.reason == message.reason
    assert (end.report.progress is not None) is kept


def test_the_last_words_are_bounded() -> None:
    end = of_pod(a_pod(Phase.TRAIN, ended=(5, 1), message="x" * 9000 + "the end"))
    assert end is not None
    assert len(end.text) == TEXT_LIMIT
    assert end.text.endswith("the end")


def test_the_first_that_failed_by_itself_is_the_cause() -> None:
    pods = (
        a_pod(Phase.TRAIN, host=0, ended=(10, 134)),
        a_pod(Phase.TRAIN, host=1, ended=(12, 70)),
        a_pod(Phase.TRAIN, host=2, ended=(11, 137)),
        a_pod(Phase.TRAIN, host=3, ended=(5, 42)),
        a_pod(Phase.TRAIN, host=4, ended=(4, 137), disrupted="PreemptionByScheduler"),
        a_pod(Phase.TRAIN, host=5, ended=(3, 0)),
    )
    ends = tuple(end for end in map(of_pod, pods) if end)
    found = first_failure(ends)
    assert found is not None
    assert found.host_index == 2
    assert first_failure(ends[3:]) is None
