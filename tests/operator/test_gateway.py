"""The gateway against a real HTTP server that answers as an API server would."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client as kube

from lora_dpo_operator import gateway as gateways
from lora_dpo_operator.errors import (
    ConflictError,
    ForbiddenError,
    GatewayError,
    NotFoundError,
    OldDefinitionError,
    RejectedError,
    UnavailableError,
)
from lora_dpo_operator.gateway import JOBS, JOBSETS, LORA_DPO_JOBS, Gateway

JOBSET = {"metadata": {"name": "tiny", "namespace": "team-a"}}


@dataclasses.dataclass
class Server:
    """What was asked of the server, and what it answers."""

    url: str = ""
    asked: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    answer: Callable[[web.Request], Awaitable[web.Response]] | None = None


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    state = Server()

    async def handle(request: web.Request) -> web.Response:
        text = await request.text()
        state.asked.append(
            {
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "type": request.content_type,
                "body": json.loads(text) if text else None,
            }
        )
        return await state.answer(request) if state.answer else web.json_response({"kind": "Anything"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app) as running:
        state.url = str(running.make_url("")).rstrip("/")
        yield state


@pytest.fixture
def calls() -> list[tuple[str, str, int]]:
    return []


@pytest.fixture
async def gateway(server: Server, calls: list[tuple[str, str, int]]) -> AsyncIterator[Gateway]:
    configuration = kube.Configuration(host=server.url)
    door = Gateway(
        kube.ApiClient(configuration), timeout=0.5, observer=lambda verb, what, code: calls.append((verb, what, code))
    )
    yield door
    await door.close()


def answering(status: int, message: str = "because") -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "message": message}, status=status)

    return answer


async def test_a_status_is_applied_to_its_subresource_with_our_field_manager(server: Server, gateway: Gateway) -> None:
    await gateway.apply_status(JOBSET)
    assert server.asked == [
        {
            "method": "PATCH",
            "path": "/apis/training.loradpo.dev/v1alpha1/namespaces/team-a/loradpojobs/tiny/status",
            "query": {"fieldManager": "lora-dpo-operator", "force": "true"},
            "type": "application/apply-patch+yaml",
            "body": JOBSET,
        }
    ]


async def test_suspending_touches_nothing_else(server: Server, gateway: Gateway) -> None:
    await gateway.set_suspend(JOBSETS, "team-a", "tiny", True)
    assert server.asked[0]["body"] == {"spec": {"suspend": True}}
    assert server.asked[0]["type"] == "application/merge-patch+json"


async def test_a_dry_run_says_so(server: Server, gateway: Gateway) -> None:
    await gateway.create(JOBSETS, JOBSET, dry_run=True)
    assert server.asked[0]["query"]["dryRun"] == "All"


async def test_long_lists_come_page_by_page(server: Server, gateway: Gateway) -> None:
    async def pages(request: web.Request) -> web.Response:
        last = "continue" in request.query
        metadata = {} if last else {"continue": "next"}
        return web.json_response({"items": [{"n": 2 if last else 1}], "metadata": metadata})

    server.answer = pages
    assert await gateway.list(LORA_DPO_JOBS, None, labels="a=b") == [{"n": 1}, {"n": 2}]
    assert [asked["query"].get("continue") for asked in server.asked] == [None, "next"]
    assert server.asked[0]["path"] == "/apis/training.loradpo.dev/v1alpha1/loradpojobs"
    assert server.asked[0]["query"]["labelSelector"] == "a=b"


async def test_what_is_not_there_is_none_and_deleting_it_is_done(server: Server, gateway: Gateway) -> None:
    server.answer = answering(404)
    assert await gateway.get(JOBS, "team-a", "tiny-prepare") is None
    await gateway.delete(JOBS, "team-a", "tiny-prepare")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RejectedError),
        (401, ForbiddenError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, RejectedError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
async def test_each_failure_has_its_error(
    server: Server, gateway: Gateway, calls: list[Any], status: int, error: type[GatewayError]
) -> None:
    server.answer = answering(status, "the webhook says no")
    with pytest.raises(
        error, match=r"create jobset\.x-k8s\.io/v1alpha2/namespaces/team-a/jobsets: the webhook says no"
    ):
        await gateway.create(JOBSETS, JOBSET)
    assert calls == [("create", "jobsets", status)]


async def test_a_definition_that_is_older_than_the_operator_is_told_with_what_to_do(
    server: Server, gateway: Gateway
) -> None:
    # The API server's answer to a status with a field of a later release, word for word.
    server.answer = answering(
        500,
        "failed to create typed patch object (team-a/tiny; training.loradpo.dev/v1alpha1, Kind=LoraDpoJob): "
        ".status.heldSince: field not declared in schema",
    )
    with pytest.raises(
        OldDefinitionError, match=r"is older than this operator: .*\.status\.heldSince.*Install the definition"
    ):
        await gateway.apply_status(JOBSET)


async def test_an_answer_that_is_no_json_is_quoted(server: Server, gateway: Gateway) -> None:
    async def proxy(_: web.Request) -> web.Response:
        return web.Response(text="<h1>Bad gateway</h1>", status=502)

    server.answer = proxy
    with pytest.raises(UnavailableError, match="Bad gateway"):
        await gateway.get(JOBS, "team-a", "x")


@pytest.mark.parametrize("text", ["<h1>Log in</h1>", "", "[]"])
async def test_a_success_that_is_no_object_is_not_the_api_servers(server: Server, gateway: Gateway, text: str) -> None:
    async def portal(_: web.Request) -> web.Response:
        return web.Response(text=text)

    server.answer = portal
    with pytest.raises(UnavailableError, match="answered with something else than an object"):
        await gateway.get(JOBS, "team-a", "x")


async def test_no_answer_in_time_is_worth_another_try(server: Server, gateway: Gateway, calls: list[Any]) -> None:
    never = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    server.answer = hang
    with pytest.raises(UnavailableError):
        await gateway.get(JOBS, "team-a", "x")
    never.set()
    assert calls == [("get", "jobs", 0)]


async def test_a_server_that_is_gone_is_worth_another_try() -> None:
    door = Gateway(kube.ApiClient(kube.Configuration(host="http://127.0.0.1:1")))
    with pytest.raises(UnavailableError):
        await door.get(JOBS, "team-a", "x")
    await door.close()


async def test_what_is_optional_is_asked_for_anew_now_and_then(
    server: Server, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def absent(_: web.Request) -> web.Response:
        return web.json_response({"message": "the server could not find the requested resource"}, status=404)

    async def there(_: web.Request) -> web.Response:
        return web.json_response({"preferredVersion": {"version": "v1beta2"}})

    server.answer = absent
    assert await gateway.served_version("kueue.x-k8s.io") is None
    server.answer = there
    assert await gateway.served_version("kueue.x-k8s.io") is None
    assert [call["path"] for call in server.asked] == ["/apis/kueue.x-k8s.io"]
    monkeypatch.setattr(gateways, "DISCOVERY_SECONDS", 0.0)
    other = "batch"
    assert await gateway.served_version(other) == "v1beta2"
    server.answer = absent
    assert await gateway.served_version(other) is None


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Points to an API server, with no proxy in the environment."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    file = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(file))

    def write(url: str) -> None:
        config = {
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        file.write_text(json.dumps(config))

    return write


async def test_the_api_server_is_reached_through_the_environments_proxy(
    server: Server, kubeconfig: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig("http://api.invalid")
    monkeypatch.setenv("http_proxy", server.url)
    door = await gateways.connect()
    try:
        assert await door.get(JOBS, "a", "x") == {"kind": "Anything"}
    finally:
        await door.close()


async def test_without_a_proxy_no_thread_looks_for_one_at_each_call(
    server: Server, kubeconfig: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig(server.url)
    door = await gateways.connect()
    try:
        await door.get(JOBS, "a", "x")
        asked: list[Any] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "run_in_executor", lambda *arguments: asked.append(arguments))
        await door.get(JOBS, "a", "x")
        assert asked == []
    finally:
        await door.close()
