"""Who of several operators works: the holder of a Lease, as controllers of Kubernetes do it.

Clocks of machines are never compared: whether a holder is still there shows in whether the Lease changes, measured by
one's own monotonic clock. https://kubernetes.io/docs/concepts/architecture/leases/
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from pydantic import AwareDatetime

from lora_dpo_operator.objects import KubeModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """How long what may take, in seconds.

    A holder that cannot renew stops before anybody else may begin: `renew` is shorter than `lease`.

    Attributes:
        lease: a Lease that has not changed for so long is free.
        renew: a holder that could not renew for so long gives up.
        retry: between two looks, and two renewals.
        call: one call to the API server.
    """

    lease: float = 10.0
    renew: float = 6.0
    retry: float = 1.0
    call: float = 2.0


class _Metadata(KubeModel):
    resource_version: str = ""


class LeaseSpec(KubeModel):
    """What a Lease says."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: AwareDatetime | None = None
    renew_time: AwareDatetime | None = None
    lease_transitions: int | None = None


class Lease(KubeModel):
    """A Lease."""

    metadata: _Metadata = _Metadata()
    spec: LeaseSpec = LeaseSpec()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sight:
    """A Lease, and since when it has looked like this.

    Attributes:
        lease: as it was read; None where there is none.
        since: by the monotonic clock.
    """

    lease: Lease | None
    since: float

    def updated(self, lease: Lease | None, monotonic: float) -> Sight:
        """The same sight where nothing has changed, a new one otherwise."""
        same = lease is not None and self.lease is not None and lease.spec == self.lease.spec
        return Sight(lease=lease, since=self.since if same else monotonic)

    def free(self, monotonic: float) -> bool:
        """Whether nobody holds it, or its holder has gone silent for as long as it promised not to."""
        if self.lease is None or not self.lease.spec.holder_identity:
            return True
        promised = self.lease.spec.lease_duration_seconds or 0
        return monotonic - self.since >= promised


def claimed(before: Lease | None, identity: str, seconds: float, now: datetime.datetime) -> LeaseSpec:
    """What the Lease says once it is this one's, or still is."""
    old = before.spec if before else LeaseSpec()
    mine = old.holder_identity == identity
    transitions = (old.lease_transitions or 0) + (0 if mine or before is None else 1)
    return LeaseSpec(
        holder_identity=identity,
        lease_duration_seconds=round(seconds),
        acquire_time=old.acquire_time if mine else now,
        renew_time=now,
        lease_transitions=transitions,
    )


def released(before: Lease, now: datetime.datetime) -> LeaseSpec:
    """What the Lease says once its holder has given it back."""
    return before.spec.model_copy(update={"holder_identity": "", "lease_duration_seconds": 1, "renew_time": now})


def manifest(namespace: str, name: str, spec: LeaseSpec, before: Lease | None) -> dict[str, Any]:
    """The object to write; with the version that was read, so that of two who write one is refused."""
    version = {"resourceVersion": before.metadata.resource_version} if before else {}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"namespace": namespace, "name": name, **version},
        "spec": {
            key: value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime.datetime) else value
            for key, value in spec.model_dump(by_alias=True, exclude_none=True).items()
        },
    }
