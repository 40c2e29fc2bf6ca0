"""The only door to the API server.

A thin layer over the official client: one method a verb, manifests in and out as dictionaries, every failure one of
our errors. Server-side apply is used for the status, which the operator owns alone. Children are created once and
never applied again: Kueue and the Job controller own parts of them, and an apply would take over an object of somebody
else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
from kubernetes.aio import client as kube
from kubernetes.aio import config as kube_config

from lora_dpo_api.wire import GROUP, KIND, PLURAL, VERSION
from lora_dpo_operator import names
from lora_dpo_operator.errors import (
    ConflictError,
    ForbiddenError,
    GatewayError,
    NotFoundError,
    OldDefinitionError,
    RejectedError,
    UnavailableError,
)
from lora_dpo_operator.event_posts import EventPosts
from lora_dpo_operator.warning_events import WarningEvents

Manifest = dict[str, Any]
Observer = Callable[[str, str, int], None]
"""Told of every call: verb, resource, HTTP status (0 when there was no answer)."""

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


@dataclasses.dataclass(frozen=True)
class Resource:
    """A kind of object, as URLs name it."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As manifests write it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of a collection, of an object, or of its subresource."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        parts += [f"namespaces/{namespace}"] if namespace else []
        return "/".join([*parts, self.plural, *filter(None, (name, subresource))])


LORA_DPO_JOBS = Resource(GROUP, VERSION, PLURAL, KIND)
JOBSETS = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
JOBS = Resource("batch", "v1", "jobs", "Job")
PODS = Resource("", "v1", "pods", "Pod")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
EVENTS = Resource("", "v1", "events", "Event")
NODES = Resource("", "v1", "nodes", "Node")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")

_UNDECLARED = "field not declared in schema"
"""What the API server says, with HTTP 500, of an applied field that a definition does not have."""
CONNECTIONS = 32
"""To the API server: each has buffers of a quarter of a megabyte, and so many calls at once keep any server busy."""
CLOSING_SECONDS = 2.0
"""For which an operator that stops still posts events."""
DISCOVERY_SECONDS = 30.0
"""How long it is believed that an API group is served, or that it is not."""


def workloads(version: str) -> Resource:
    """Kueue's Workloads, in a version that the cluster serves."""
    return Resource(names.KUEUE, version, "workloads", "Workload")


def local_queues(version: str) -> Resource:
    """Kueue's queues of a namespace, in a version that the cluster serves."""
    return Resource(names.KUEUE, version, "localqueues", "LocalQueue")


class Gateway:
    """Calls to the API server, with timeouts and typed errors."""

    def __init__(self, client: kube.ApiClient, *, timeout: float = 30.0, observer: Observer | None = None) -> None:
        self._client = client
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=10.0)
        self._observer = observer
        self._read_only = False
        self._served: dict[str, tuple[str | None, float]] = {}
        self._posts = EventPosts(lambda event: self.create(EVENTS, event))
        self._warnings = WarningEvents(lambda namespace: self.list(EVENTS, namespace, fields="type=Warning"))

    async def close(self) -> None:
        """Post the events that still wait, and close the connections."""
        await self._posts.close(CLOSING_SECONDS)
        await self._client.close()

    def close_for_writing(self) -> None:
        """Refuse every call from now on that would change something."""
        self._read_only = True

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        """Read an object; None where there is none.

        Raises:
            GatewayError: any failure but 404.
        """
        try:
            return await self._call("get", "GET", resource, resource.path(namespace, name))
        except NotFoundError:
            return None

    async def list(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        """Read a collection.

        Args:
            resource: what to list.
            namespace: where; None means everywhere.
            labels: label selector.
            fields: field selector.

        Raises:
            GatewayError: any failure.
        """
        return [item async for item in self.each(resource, namespace, labels=labels, fields=fields)]

    async def each(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = ""
    ) -> AsyncIterator[Manifest]:
        """Read a collection as `list` does, and hold no more than a page of it at a time."""
        token = ""
        while True:
            query = {"labelSelector": labels, "fieldSelector": fields, "limit": "500", "continue": token}
            page = await self._call("list", "GET", resource, resource.path(namespace), query=query)
            for item in page.get("items") or ():
                yield item
            token = page.get("metadata", {}).get("continue", "")
            if not token:
                return

    async def warnings(self, namespace: str, uid: str, *, age: float) -> tuple[Manifest, ...]:
        """The last events of type Warning about an object.

        Args:
            namespace: where it is.
            uid: the object's.
            age: seconds that what is answered may be old; more where the namespace has very many events.

        Raises:
            GatewayError: any failure.
        """
        return await self._warnings.about(namespace, uid, age=age)

    async def served_version(self, group: str) -> str | None:
        """The version of an API group that the cluster prefers; None where it does not serve the group.

        Asked anew now and then: what is optional comes and goes while the operator runs.

        Raises:
            GatewayError: the API server did not answer.
        """
        version, until = self._served.get(group, (None, 0.0))
        if time.monotonic() < until:
            return version
        try:
            found = await self._call("discover", "GET", Resource(group, "", "apigroups", "APIGroup"), f"/apis/{group}")
            version = str(found["preferredVersion"]["version"])
        except NotFoundError:
            version = None
        self._served[group] = (version, time.monotonic() + DISCOVERY_SECONDS)
        return version

    async def create(self, resource: Resource, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Create an object.

        Raises:
            ConflictError: it exists already.
            GatewayError: any other failure.
        """
        path = resource.path(manifest["metadata"]["namespace"])
        query = {"fieldManager": names.MANAGER, "dryRun": "All" if dry_run else ""}
        return await self._call("create", "POST", resource, path, body=manifest, query=query)

    def post(self, event: Manifest) -> None:
        """Post an event when there is time; it is lost where the cluster refuses it."""
        self._posts.add(event)

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Write the whole of an object, if it is still the version that the manifest names.

        Raises:
            ConflictError: somebody else has written it since.
            GatewayError: any other failure.
        """
        metadata = manifest["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": names.MANAGER}
        return await self._call("update", "PUT", resource, path, body=manifest, query=query)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Write the status of a LoraDpoJob by server-side apply: the whole of it, in one call.

        Raises:
            GatewayError: any failure. NotFoundError: the job is gone. ConflictError: it is another one of that name.
                OldDefinitionError: the cluster's definition knows less than this operator writes.
        """
        metadata = manifest["metadata"]
        path = LORA_DPO_JOBS.path(metadata["namespace"], metadata["name"], "status")
        query = {"fieldManager": names.MANAGER, "force": "true"}
        try:
            return await self._call("apply", "PATCH", LORA_DPO_JOBS, path, body=manifest, query=query, content=APPLY)
        except UnavailableError as error:
            if _UNDECLARED not in error.reason:
                raise
            raise OldDefinitionError(error.verb, error.what, error.status, error.reason) from error

    async def set_suspend(self, resource: Resource, namespace: str, name: str, suspend: bool) -> Manifest:
        """Suspend or resume a Job or JobSet, touching nothing else of it.

        Raises:
            GatewayError: any failure.
        """
        body = {"spec": {"suspend": suspend}}
        query = {"fieldManager": names.MANAGER}
        path = resource.path(namespace, name)
        return await self._call("patch", "PATCH", resource, path, body=body, query=query, content=MERGE)

    async def set_active(self, namespace: str, name: str, active: bool) -> Manifest | None:
        """Let Kueue take a Workload out of its queue, and remember on it by whose wish; None where it is gone.

        Raises:
            GatewayError: any failure but 404.
        """
        version = await self.served_version(names.KUEUE)
        if version is None:
            return None
        resource = workloads(version)
        note = {names.SUSPENDED_ANNOTATION: None if active else "true"}
        body = {"metadata": {"annotations": note}, "spec": {"active": active}}
        query = {"fieldManager": names.MANAGER}
        path = resource.path(namespace, name)
        try:
            return await self._call("patch", "PATCH", resource, path, body=body, query=query, content=MERGE)
        except NotFoundError:
            return None

    async def set_deadline(self, namespace: str, name: str, seconds: int) -> None:
        """Set `activeDeadlineSeconds` of a Job; nothing happens where it is gone already.

        Raises:
            GatewayError: any failure but 404.
        """
        body = {"spec": {"activeDeadlineSeconds": seconds}}
        query = {"fieldManager": names.MANAGER}
        try:
            await self._call("patch", "PATCH", JOBS, JOBS.path(namespace, name), body=body, query=query, content=MERGE)
        except NotFoundError:
            return

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, foreground: bool = False, uid: str = ""
    ) -> None:
        """Delete an object and what it owns; nothing happens where it is gone already.

        Args:
            resource: its kind.
            namespace: where it is.
            name: its name.
            foreground: it stays, marked, until what it owns is gone.
            uid: only if it is this one.

        Raises:
            GatewayError: any failure but 404.
        """
        body: Manifest = {"propagationPolicy": "Foreground" if foreground else "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._call("delete", "DELETE", resource, resource.path(namespace, name), body=body)
        except NotFoundError:
            return

    async def _call(
        self,
        verb: str,
        method: str,
        resource: Resource,
        path: str,
        *,
        body: Manifest | None = None,
        query: dict[str, str] | None = None,
        content: str = "application/json",
    ) -> Manifest:
        what = path.removeprefix("/apis/").removeprefix("/api/")
        if self._read_only and method != "GET":
            raise UnavailableError(verb, what, 0, "another replica of the operator leads")
        try:
            status, text = await self._send(method, path, body, query or {}, content)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._tell(verb, resource, 0)
            raise UnavailableError(verb, what, 0, str(error) or type(error).__name__) from error
        self._tell(verb, resource, status)
        if not 200 <= status < 300:
            raise error_of(verb, what, status, text)
        return _object(verb, what, status, text)

    async def _send(
        self, method: str, path: str, body: Manifest | None, query: dict[str, str], content: str
    ) -> tuple[int, bytes]:
        method, url, headers, payload, _ = await self._client.param_serialize(
            method=method,
            resource_path=path,
            query_params=[(key, value) for key, value in query.items() if value],
            header_params={"Accept": "application/json", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = await self._client.call_api(
            method, url, header_params=headers, body=payload, _request_timeout=self._timeout
        )
        return response.status, await response.read()

    def _tell(self, verb: str, resource: Resource, status: int) -> None:
        if self._observer:
            self._observer(verb, resource.plural, status)


def _object(verb: str, what: str, status: int, text: bytes) -> Manifest:
    """What the API server answers with: an object. What is none comes from a proxy before it."""
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise UnavailableError(verb, what, status, f"answered with something else than an object: {text[:200]!r}")
    return answer


def error_of(verb: str, what: str, status: int, text: bytes) -> GatewayError:
    """The error that an HTTP status means, with the API server's own sentence where it gave one."""
    try:
        reason = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        reason = text[:200].decode(errors="replace") or "no explanation"
    kinds: dict[int, type[GatewayError]] = {
        400: RejectedError,
        401: ForbiddenError,
        403: ForbiddenError,
        404: NotFoundError,
        409: ConflictError,
        413: RejectedError,
        422: RejectedError,
    }
    return kinds.get(status, UnavailableError)(verb, what, status, reason)


async def connect(*, observer: Observer | None = None) -> Gateway:
    """Connect as the pod's service account, or with `KUBECONFIG` outside of a cluster.

    Raises:
        kubernetes.aio.config.ConfigException: there is neither.
    """
    configuration = kube.Configuration(connection_pool_maxsize=CONNECTIONS)
    if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
        kube_config.load_incluster_config(client_configuration=configuration)
    else:
        file = os.environ.get("KUBECONFIG")
        await kube_config.load_kube_config(file, client_configuration=configuration, persist_config=False)
    # Else aiohttp looks for a proxy and a netrc file in a thread at each call, which takes two thirds of a call's time.
    configuration.client_session_kwargs = {"trust_env": bool(urllib.request.getproxies_environment())}
    return Gateway(kube.ApiClient(configuration), observer=observer)
