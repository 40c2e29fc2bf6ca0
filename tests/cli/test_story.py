from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from ldj import story
from lora_dpo_api.status import JobPhase

from . import jobs

NOW = jobs.at(1290)
Told = Callable[[str, str], None]


def text(**status: Any) -> str:
    return f"{story.tell(jobs.job(**status), NOW).plain}\n"


@pytest.mark.parametrize(
    ("name", "status"), [("running", jobs.RUNNING), ("failed", jobs.FAILED), ("succeeded", jobs.SUCCEEDED), ("new", {})]
)
def test_the_story_of_a_job_is_as_committed(name: str, status: dict[str, Any], told: Told) -> None:
    told(f"status-{name}", text(**status))


def test_terminal_codes_in_a_message_are_shown_not_obeyed() -> None:
    assert "\x1b" not in text(**jobs.FAILED)
    assert r"\x1b[2J" in text(**jobs.FAILED)


def test_words_that_look_like_markup_stay_as_they_are() -> None:
    assert "[bold]loss[/bold]" in text(message="[bold]loss[/bold]")


def test_the_failure_of_a_restarted_slice_is_called_the_last_one() -> None:
    assert "last failure: Data/InvalidRow" in text(**{**jobs.RUNNING, "failure": jobs.FAILED["failure"]})
    assert "last failure" not in text(**jobs.FAILED)


def test_a_status_of_another_version_is_said_and_breaks_nothing() -> None:
    job = jobs.job(phase="Ascended")
    assert not job.readable
    assert "Update ldj" in story.tell(job, NOW).plain


@pytest.mark.parametrize("phase", list(JobPhase))
def test_every_phase_is_told(phase: JobPhase) -> None:
    assert phase.value in text(phase=phase.value)


def test_nothing_is_told_that_is_not_known() -> None:
    lines = text(metrics={"loss": 0.5}).splitlines()
    assert lines == ["team-a/tiny  Pending  made 21m30s ago", "", "metrics", "  training      loss 0.5"]


def test_a_seen_job_needs_no_status_at_all() -> None:
    found = dataclasses.replace(jobs.job(), spec={})
    assert found.output_path == ""
    assert story.tell(found, NOW).plain == "team-a/tiny  Pending  made 21m30s ago"
