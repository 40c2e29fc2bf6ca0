"""One leader among several operators, by a Lease on a real HTTP server that keeps versions as the API server does."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client as kube

from lora_dpo_operator import election as elections
from lora_dpo_operator.election import Election
from lora_dpo_operator.errors import LeadershipLostError, UnavailableError
from lora_dpo_operator.gateway import JOBS, Gateway
from lora_dpo_operator.lease import Lease, LeaseSpec, Sight, Times, claimed

from .builders import at

WHERE = ("lora-dpo-system", "operator")
PATH = "/apis/coordination.k8s.io/v1/namespaces/lora-dpo-system/leases"
QUICK = Times(lease=1.0, renew=0.3, retry=0.02, call=0.2)


@dataclasses.dataclass
class Store:
    """The Lease as the server holds it."""

    url: str = ""
    lease: dict[str, Any] | None = None
    version: int = 0
    down: bool = False
    silent: bool = False

    async def answer(self, request: web.Request) -> web.Response:
        if self.silent:
            await asyncio.sleep(60)
        if self.down:
            return web.json_response({"message": "etcd is away"}, status=500)
        if request.method == "GET":
            return web.json_response(self.lease or {"message": "no lease"}, status=200 if self.lease else 404)
        body = await request.json()
        stale = request.method == "PUT" and body["metadata"]["resourceVersion"] != str(self.version)
        if stale or (request.method == "POST" and self.lease is not None):
            return web.json_response({"message": "somebody was here before"}, status=409)
        self.version += 1
        self.lease = body | {"metadata": body["metadata"] | {"resourceVersion": str(self.version)}}
        return web.json_response(self.lease)

    @property
    def holder(self) -> str:
        return self.lease["spec"]["holderIdentity"] if self.lease else ""


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    state = Store()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", state.answer)
    async with TestServer(app) as server:
        state.url = str(server.make_url("")).rstrip("/")
        yield state


@pytest.fixture
async def gateways(store: Store) -> AsyncIterator[tuple[Gateway, Gateway]]:
    made = tuple(Gateway(kube.ApiClient(kube.Configuration(host=store.url))) for _ in range(2))
    yield made[0], made[1]
    for gateway in made:
        await gateway.close()


def candidate(gateway: Gateway, name: str) -> Election:
    return Election(gateway, WHERE, name, lambda: datetime.datetime.now(datetime.UTC), times=QUICK)


async def test_of_two_that_begin_at_once_one_leads(store: Store, gateways: tuple[Gateway, Gateway]) -> None:
    stop = asyncio.Event()
    candidates = [candidate(gateway, name) for gateway, name in zip(gateways, "ab", strict=True)]
    tasks = [asyncio.create_task(one.acquire(stop)) for one in candidates]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    leader = next(one for one in candidates if one.leading)
    keeps = asyncio.create_task(leader.keep())
    await asyncio.sleep(2 * QUICK.lease)
    assert not keeps.done()
    assert store.holder == leader.holder
    assert all(not task.done() for task in pending)
    stop.set()
    assert [await task for task in pending] == [False]
    keeps.cancel()


async def test_a_lease_that_is_given_back_is_taken_at_once(store: Store, gateways: tuple[Gateway, Gateway]) -> None:
    stop = asyncio.Event()
    first, second = candidate(gateways[0], "a"), candidate(gateways[1], "b")
    assert await first.acquire(stop)
    waits = asyncio.create_task(second.acquire(stop))
    await asyncio.sleep(5 * QUICK.retry)
    assert (second.leading, second.ready(), second.holder) == (False, True, "a")
    await first.release()
    async with asyncio.timeout(QUICK.lease / 2):
        assert await waits
    assert store.holder == "b"


async def test_a_silent_leaders_lease_is_free_after_its_time_and_not_before(
    store: Store, gateways: tuple[Gateway, Gateway]
) -> None:
    stop = asyncio.Event()
    assert await candidate(gateways[0], "killed").acquire(stop)
    second = candidate(gateways[1], "b")
    began = asyncio.get_running_loop().time()
    assert await second.acquire(stop)
    assert QUICK.lease <= asyncio.get_running_loop().time() - began < 2 * QUICK.lease
    assert store.lease is not None
    assert store.lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_cannot_renew_stops_before_another_may_begin_and_writes_nothing_more(
    store: Store, gateways: tuple[Gateway, Gateway]
) -> None:
    leader = candidate(gateways[0], "a")
    assert await leader.acquire(asyncio.Event())
    began = asyncio.get_running_loop().time()
    store.silent = True
    with pytest.raises(LeadershipLostError, match=r"lora-dpo-system/operator is lost: it could not be renewed"):
        await leader.keep()
    assert asyncio.get_running_loop().time() - began < QUICK.lease
    assert not leader.leading
    with pytest.raises(UnavailableError, match="another replica"):
        await gateways[0].create(JOBS, {"metadata": {"name": "x", "namespace": "a"}})


async def test_a_moment_without_the_api_server_costs_nothing(store: Store, gateways: tuple[Gateway, Gateway]) -> None:
    leader = candidate(gateways[0], "a")
    assert await leader.acquire(asyncio.Event())
    keeps = asyncio.create_task(leader.keep())
    store.down = True
    await asyncio.sleep(QUICK.renew / 2)
    store.down = False
    await asyncio.sleep(2 * QUICK.renew)
    assert not keeps.done()
    keeps.cancel()


async def test_a_leader_whose_lease_was_taken_stops(store: Store, gateways: tuple[Gateway, Gateway]) -> None:
    leader = candidate(gateways[0], "a")
    assert await leader.acquire(asyncio.Event())
    assert store.lease is not None
    store.lease["spec"]["holderIdentity"] = "thief"
    with pytest.raises(LeadershipLostError, match="thief has it"):
        await leader.keep()


@pytest.mark.parametrize("left", [None, {"holderIdentity": ""}])
async def test_a_leader_whose_lease_is_nobodys_has_lost_it(
    store: Store, gateways: tuple[Gateway, Gateway], left: dict[str, Any] | None
) -> None:
    leader = candidate(gateways[0], "a")
    assert await leader.acquire(asyncio.Event())
    assert store.lease is not None
    store.lease = None if left is None else store.lease | {"spec": left}
    with pytest.raises(LeadershipLostError, match="nobody has it"):
        await leader.keep()


async def test_a_candidate_is_alive_as_long_as_it_looks(
    gateways: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = candidate(gateways[0], "a")
    assert one.alive()
    assert not one.ready()
    monkeypatch.setattr(elections, "STALLED_AFTER", 0.0)
    assert not one.alive()


def spec(holder: str | None, seconds: int = 10) -> Lease:
    return Lease(spec=LeaseSpec(holder_identity=holder, lease_duration_seconds=seconds, renew_time=at(0)))


def test_silence_is_measured_by_ones_own_clock() -> None:
    sight = Sight(lease=None, since=0.0).updated(spec("a"), 100.0)
    assert not sight.free(109.9)
    assert sight.updated(spec("a"), 105.0).free(110.0)
    renewed = Lease(spec=spec("a").spec.model_copy(update={"renew_time": at(5)}))
    assert not sight.updated(renewed, 105.0).free(110.0)
    assert sight.updated(spec(""), 101.0).free(101.0)


def test_the_time_of_the_takeover_stays_while_a_holder_renews() -> None:
    first = claimed(None, "a", 10.0, at(0))
    again = claimed(Lease(spec=first), "a", 10.0, at(5))
    assert (again.acquire_time, again.renew_time, again.lease_transitions) == (at(0), at(5), 0)
    other = claimed(Lease(spec=again), "b", 10.0, at(9))
    assert (other.acquire_time, other.lease_transitions) == (at(9), 1)


def test_a_holder_stops_before_its_lease_is_over() -> None:
    times = Times()
    assert times.renew + times.retry + times.call < times.lease
