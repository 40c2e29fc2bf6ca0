"""One pass over one job: observe, plan, apply, derive, and one status write.

That a new job is accepted is told while its first objects are made, where nothing else waits: a webhook that hangs does
not keep its user in the dark, and the second write delays nobody.

Idempotent, and the same whatever caused it: an edit, an event of a child, a restart of the operator, the resync.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import cast

from lora_dpo_api import wire
from lora_dpo_api.status import LoraDpoJobStatus
from lora_dpo_operator import causes, derive, events, observe, plan, renewal
from lora_dpo_operator.causes import Cause
from lora_dpo_operator.errors import (
    ConflictError,
    ForbiddenError,
    GatewayError,
    NameTakenError,
    NotFoundError,
    RejectedError,
    UnavailableError,
)
from lora_dpo_operator.gateway import Gateway, Manifest
from lora_dpo_operator.objects import ObjectMeta
from lora_dpo_operator.observe import Memory
from lora_dpo_operator.observed import Observed, Trouble
from lora_dpo_operator.reasons import FailureClass, Reason
from lora_dpo_operator.settings import Settings

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime.datetime]


async def reconcile(
    gateway: Gateway,
    key: tuple[str, str],
    memory: Memory,
    settings: Settings,
    clock: Clock,
    *,
    new: Manifest | None = None,
    alone: bool = False,
) -> Observed | None:
    """Bring one job a step further.

    Args:
        gateway: the door to the API server.
        key: namespace and name of the job.
        memory: what else is known of it.
        settings: the operator's.
        clock: the time now.
        new: the job, where a watch has just told of it and no operator has written to it: it is not read again.
        alone: no other job is being worked on.

    Returns:
        What was observed, with its new status; None where the job is gone.

    Raises:
        GatewayError: the API server did not answer; worth another try.
    """
    observed = await observe.observe(gateway, key, memory, settings, new=new)
    if observed is None:
        return None
    observed = renewal.renewed(observed)
    actions = plan.actions(observed, settings) if observed.trouble is None else ()
    if new is None or not alone or not actions:
        return await tell(gateway, await _act(gateway, actions, observed), clock)
    told, acted = await _both(tell(gateway, observed, clock), _act(gateway, actions, observed))
    if told is None:
        return None
    return await tell(gateway, dataclasses.replace(acted, metadata=told.metadata, status=told.status), clock)


async def tell(gateway: Gateway, observed: Observed, clock: Clock) -> Observed | None:
    """Write the status that follows from what was observed, if it has changed, and the events of the change.

    Returns:
        What was observed, with its new status; None where the job is gone.

    Raises:
        GatewayError: the API server did not answer.
    """
    now = clock()
    status = derive.status(observed, now.replace(microsecond=0))
    if status == observed.status:
        return await _release(gateway, observed, now)
    try:
        written = await gateway.apply_status(_status_manifest(observed, status))
    except (NotFoundError, ConflictError):
        # Deleted, and perhaps made anew under the same name: not the job that was observed.
        return None
    if status.phase != observed.status.phase:
        before = observed.status.phase or "new"
        logger.info("%s/%s: %s -> %s: %s", *observed.key, before, status.phase, status.message)
    for index, event in enumerate(events.between(observed.status, status, observed.verdict)):
        gateway.post(events.build(event, observed.metadata, now, index))
    metadata = observed.metadata.model_copy(update={"resource_version": written["metadata"].get("resourceVersion")})
    return await _release(gateway, dataclasses.replace(observed, metadata=metadata, status=status), now)


async def _release(gateway: Gateway, observed: Observed, now: datetime.datetime) -> Observed:
    """Give back the slice of a job that has failed: after the write, for a slice that is gone would be made again."""
    for action in plan.release(observed, now):
        await gateway.delete(action.resource, observed.metadata.namespace, action.name, uid=action.uid)
    return observed


async def _both[A, B](one: Awaitable[A], other: Awaitable[B]) -> tuple[A, B]:
    """The results of both, done side by side, once both have ended, whether or not one fails."""
    found = await asyncio.gather(one, other, return_exceptions=True)
    for failed in found:
        if isinstance(failed, BaseException):
            raise failed
    return cast(tuple[A, B], found)


async def _act(gateway: Gateway, actions: tuple[plan.Action, ...], observed: Observed) -> Observed:
    """Do one after another, up to one that the cluster refuses."""
    for action in actions:
        observed = await _perform(gateway, action, observed)
        if observed.trouble is not None:
            break
    return observed


async def _perform(gateway: Gateway, action: plan.Action, observed: Observed) -> Observed:
    namespace = observed.metadata.namespace
    try:
        match action:
            case plan.Create():
                return observe.with_child(observed, await _create(gateway, action, observed))
            case plan.SetSuspend(resource, name, suspend):
                return observe.with_child(observed, await gateway.set_suspend(resource, namespace, name, suspend))
            case plan.SetActive(name, active):
                return observe.with_workload(observed, await gateway.set_active(namespace, name, active))
            case plan.SetDeadline(name, seconds):
                await gateway.set_deadline(namespace, name, seconds)
            case plan.Delete(resource, name, foreground, uid):
                await gateway.delete(resource, namespace, name, foreground=foreground, uid=uid)
    except (RejectedError, ForbiddenError) as error:
        return dataclasses.replace(observed, trouble=_trouble(error, final=isinstance(error, RejectedError)))
    except UnavailableError as error:
        if error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return dataclasses.replace(observed, trouble=_trouble(error, final=False))
    except NameTakenError as error:
        return dataclasses.replace(observed, trouble=observe.taken(error))
    return observed


def _trouble(error: GatewayError, *, final: bool) -> Trouble:
    otherwise = Cause(Reason.REFUSED_BY_CLUSTER, FailureClass.CONFIG)
    cause = causes.of(error.reason, otherwise)
    said = "The cluster refuses what this job needs" if final else "The cluster refuses for now what this job needs"
    return Trouble(reason=cause.reason, message=f"{said}: {error}", final=final, class_=cause.class_, hint=cause.hint)


async def _create(gateway: Gateway, action: plan.Create, observed: Observed) -> Manifest:
    """Make an object, or take the one that appeared in between where it is this job's."""
    try:
        return await gateway.create(action.resource, action.manifest)
    except ConflictError:
        name = action.manifest["metadata"]["name"]
        found = await gateway.get(action.resource, observed.metadata.namespace, name)
        if found is None:
            raise
        metadata = ObjectMeta.model_validate(found["metadata"])
        if not metadata.owned_by(observed.metadata.uid):
            raise observe.taken_by(action.resource.kind, metadata, observed.metadata.name) from None
        return found


def _status_manifest(observed: Observed, status: LoraDpoJobStatus) -> Manifest:
    metadata = observed.metadata
    written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "apiVersion": wire.API_VERSION,
        "kind": wire.KIND,
        # With the uid, a job of the same name made since is not written to.
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        "status": {key: value for key, value in written.items() if value != []},
    }
