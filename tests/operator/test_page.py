"""The read-only page, as a server gives it."""

from __future__ import annotations

import datetime
import html.parser
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import BaseModel

from lora_dpo_api.protocol import Advice
from lora_dpo_api.status import Failure, JobPhase, LoraDpoJobStatus, PhaseTime
from lora_dpo_operator import overview, page, settings, ui

from .builders import at
from .page_jobs import EVIL, Jobs, failed, running, served, thousand

TAGS = set(
    [
        "html",
        "head",
        "meta",
        "title",
        "link",
        "body",
        "a",
        "header",
        "main",
        "h1",
        "h2",
        "form",
        "label",
        "input",
        "button",
        "nav",
        "b",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "span",
        "progress",
        "svg",
        "polyline",
        "line",
        "text",
        "circle",
        "figure",
        "figcaption",
        "section",
        "p",
        "dl",
        "dt",
        "dd",
        "code",
        "details",
        "summary",
    ]
)


class Reader(html.parser.HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def links(text: str) -> list[str]:
    """Where the page's links to jobs lead, in order."""
    return [attrs["href"] or "" for tag, attrs in read(text).tags if tag == "a" and "/ui/" in (attrs["href"] or "")]


@pytest.fixture
def known() -> Jobs:
    return {("team-a", "tiny"): running()}


@pytest.fixture
async def get(known: Jobs) -> AsyncIterator[Callable[..., Any]]:
    async with served(known) as server, TestClient(server) as client:
        yield client.get


async def test_a_job_is_in_the_list_and_has_a_page_of_its_own(get: Callable[..., Any]) -> None:
    listed = await (await get("/ui")).text()
    assert links(listed) == ["/ui/team-a/tiny"]
    answer = await get("/ui/team-a/tiny")
    text = read(await answer.text()).text
    assert answer.status == 200
    for words in ("Running", "step 350 of 2000, 1h12m left", "Training: step 350", "0.775", "182,345"):
        assert words in text


async def test_the_curves_are_told_to_those_who_cannot_see_them(get: Callable[..., Any]) -> None:
    tags = read(await (await get("/ui/team-a/tiny")).text()).tags
    assert [attrs["aria-label"] for tag, attrs in tags if tag == "svg"] == [
        "loss: 0.6995 at step 1, 0.5245 at step 351",
        "reward margin: 0.002 at step 1, 0.702 at step 351",
        "accuracy: 0.501 at step 1, 0.851 at step 351",
    ]


async def test_a_failure_is_told_with_what_to_do(get: Callable[..., Any], known: Jobs) -> None:
    known["team-a", "tiny"] = failed(advice=[Advice(code="BadBasin", message="Try 1e-6.")])
    text = read(await (await get("/ui/team-a/tiny")).text()).text
    for words in ("Failure: Data/InvalidRow", "What to do: Mend it.", "exit code 65", "Advice: BadBasin", "Try 1e-6."):
        assert words in text
    assert "Data/InvalidRow" in await (await get("/ui")).text()


@pytest.mark.parametrize("path", ["/ui", "/ui/team-a/tiny"])
async def test_a_replica_that_stands_by_names_the_leader(path: str) -> None:
    app = web.Application()
    app.add_routes(ui.routes(dict, lambda: "operator-1_5f"))
    async with TestServer(app) as server, TestClient(server) as client:
        answer = await client.get(path)
        assert answer.status == 503
        assert "operator-1_5f leads" in read(await answer.text()).text


async def test_a_job_that_is_gone_is_said_with_a_way_back(get: Callable[..., Any]) -> None:
    answer = await get("/ui/team-a/none")
    assert answer.status == 404
    assert "There is no LoraDpoJob team-a/none" in read(await answer.text()).text


def hostile(value: Any) -> Any:
    """The same value with every text replaced that has no fixed words."""
    match value:
        case BaseModel():
            fields = {name: hostile(getattr(value, name)) for name in type(value).model_fields}
            return value.model_copy(update=fields)
        case list():
            return [hostile(item) for item in value]
        case str() if not isinstance(value, JobPhase):
            return EVIL
        case _:
            return value


EVERYTHING = running(
    failure=Failure(class_="C", reason="R", message="M", hint="H", phase="train", pod="p", node="n", exit_code=1),
    advice=[Advice(code="A", message="M")],
    slice={"description": "v5p"},
    artifacts=[{"kind": "peft", "path": "gs://x"}],
    conditions=[{"type": "T", "status": "True", "reason": "R", "message": "M", "last_transition_time": at(1)}],
    last_checkpoint={"step": 1, "time": at(1), "path": "gs://x"},
    trainer_state="Training",
)


@pytest.mark.parametrize("path", ["/ui", "/ui/x/y", "/ui/none/none", "/ui?q="])
async def test_whatever_a_stranger_wrote_is_shown_as_text(path: str, get: Callable[..., Any], known: Jobs) -> None:
    known.clear()
    known["x", "y"] = known[EVIL, EVIL] = hostile(EVERYTHING)
    written = path.replace("none", EVIL.replace("/", "%2F").replace("{", "%7B")) if "none" in path else path
    text = await (await get(written + (EVIL if path.endswith("q=") else ""))).text()
    found = read(text)
    assert {tag for tag, _ in found.tags} <= TAGS
    for tag, attrs in found.tags:
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
        assert (attrs.get("href") or "/ui").startswith(("/ui", "#main"))
    assert "49" not in found.text.replace("0.49", "")


async def test_every_answer_forbids_scripts_frames_and_strangers(get: Callable[..., Any]) -> None:
    for path in ("/ui", "/ui/team-a/tiny", "/ui/no/job", "/ui/page.css"):
        headers = (await get(path)).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self';")
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"


async def test_nothing_is_loaded_from_elsewhere(get: Callable[..., Any]) -> None:
    for path in ("/ui", "/ui/team-a/tiny"):
        for _, attrs in read(await (await get(path)).text()).tags:
            assert "src" not in attrs
            assert not (attrs.get("href") or "").startswith(("http", "//"))
    sheet = await (await get("/ui/page.css")).text()
    assert "url(" not in sheet
    assert "@import" not in sheet


async def test_jobs_are_found_by_words_and_phase(get: Callable[..., Any], known: Jobs) -> None:
    known["team-b", "huge"] = failed()
    assert links(await (await get("/ui?q=team-b")).text()) == ["/ui/team-b/huge"]
    assert links(await (await get("/ui?phase=Running")).text()) == ["/ui/team-a/tiny"]
    assert links(await (await get("/ui?phase=Nonsense&page=x")).text()) == ["/ui/team-a/tiny", "/ui/team-b/huge"]
    nothing = read(await (await get("/ui?q=zzz")).text()).text
    assert "No job matches." in nothing


async def test_the_page_reads_itself_again_only_when_asked(get: Callable[..., Any]) -> None:
    assert "http-equiv" not in await (await get("/ui")).text()
    assert '<meta http-equiv="refresh" content="10">' in await (await get("/ui?follow=on")).text()


async def test_a_thousand_jobs_are_pages_of_fifty_and_take_a_moment(get: Callable[..., Any], known: Jobs) -> None:
    known.clear()
    known.update(thousand())
    await get("/ui")  # the templates are compiled once
    began = time.process_time()
    text = await (await get("/ui")).text()
    spent = time.process_time() - began
    assert spent < 0.5
    assert len(text) < 100_000
    assert len(links(text)) == overview.PAGE_SIZE
    assert links(text)[0] == "/ui/team-a/job-0998"
    assert "1000 jobs, page 1 of 20" in read(text).text

    seen = [link for number in range(1, 21) for link in links(await (await get(f"/ui?page={number}")).text())]
    assert len(set(seen)) == 1000
    assert links(await (await get("/ui?page=999")).text()) == links(await (await get("/ui?page=20")).text())


def test_the_page_is_off_unless_it_is_asked_for() -> None:
    assert not settings.parse([], {}).ui
    assert settings.parse([], {"LORADPO_UI": "true"}).ui


@pytest.mark.parametrize("phase", list(JobPhase))
def test_a_job_of_any_phase_has_a_page(phase: JobPhase) -> None:
    status = LoraDpoJobStatus(phase=phase, timeline=[PhaseTime(phase=phase, started=at(0))])
    assert phase.value in page.job(("a", "b"), status, at(5))
    assert phase.value in page.jobs({("a", "b"): status}, overview.Question())


def test_a_job_that_the_operator_has_said_nothing_of_has_a_page() -> None:
    text = page.job(("a", "b"), LoraDpoJobStatus(), datetime.datetime.now(datetime.UTC))
    assert "Pending" in text
