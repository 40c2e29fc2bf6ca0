from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import rich.console

from ldj import watch

from . import jobs

NOW = jobs.at(3600)


def shown(found: list[watch.Line], *, height: int = 50, width: int = 120) -> str:
    console = rich.console.Console(file=io.StringIO(), width=width, color_system=None)
    console.print(watch.table(found, width=width, height=height))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]


def some(**more: dict[str, Any]) -> list[watch.Line]:
    statuses = {"done": jobs.SUCCEEDED, "broken": jobs.FAILED, "busy": jobs.RUNNING, "new": {}, **more}
    return watch.lines([jobs.job(name=name, **status) for name, status in statuses.items()], NOW)


def test_the_table_is_as_committed(told: Callable[[str, str], None]) -> None:
    told("watch", shown(some()))


def test_what_holds_a_slice_comes_first_and_what_is_over_last() -> None:
    assert [line.name for line in some()] == ["busy", "new", "broken", "done"]


def test_newer_jobs_come_first_among_equals() -> None:
    found = [jobs.job(name=name, made=made) for name, made in (("old", 0), ("young", 900), ("middle", 300))]
    assert [line.name for line in watch.lines(found, NOW)] == ["young", "middle", "old"]


def test_a_thousand_jobs_fit_the_terminal_and_the_rest_is_counted() -> None:
    found = watch.lines([jobs.job(name=f"job-{number}", **jobs.RUNNING) for number in range(1000)], NOW)
    text = shown(found, height=20)
    assert len(text.splitlines()) == 22
    assert "1000 jobs: 1000 Running; 980 more not shown" in text


def test_a_message_can_neither_move_the_cursor_nor_break_the_table() -> None:
    text = shown(some(odd={"message": "a\n\x1b[2J[red]b"}))
    assert "\x1b" not in text
    assert r"a\n\x1b[2J[red]b" in text
