"""The only door of the command line to a user's cluster: a thin layer over the official client.

Manifests go in and out as dictionaries; every failure is one of our errors, in a sentence.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from ldj.errors import ClusterError, ForbiddenError, NoSuchJobError, NotInstalledError, RefusedError, UnreachableError
from lora_dpo_api.wire import API_VERSION, DNS_SUBDOMAIN, GROUP, KIND, PLURAL

Manifest = dict[str, Any]

FIELD_MANAGER = "ldj"
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"
_TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and to wait for an answer."""
_PAGE = 500
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclasses.dataclass(frozen=True, slots=True)
class Kube:
    """A user's cluster.

    Attributes:
        api: the official client.
        namespace: where jobs are looked for.
    """

    api: Any
    namespace: str

    def job(self, name: str) -> Manifest:
        """Read a job.

        Raises:
            NoSuchJobError: there is none of that name.
            ClusterError: the cluster can't answer.
        """
        return self._json("GET", self._path(name), job=name)

    def jobs(self, *, everywhere: bool = False) -> list[Manifest]:
        """Read all jobs of the namespace, or of all namespaces.

        Raises:
            ClusterError: the cluster can't answer.
        """
        return self._list(_jobs(None if everywhere else self.namespace))

    def pods(self, name: str) -> list[Manifest]:
        """The pods that the operator made for a job.

        Raises:
            ClusterError: the cluster can't answer.
        """
        return self._list(f"/api/v1/namespaces/{_word(self.namespace)}/pods", labelSelector=f"{GROUP}/job={name}")

    def apply(self, manifest: Manifest) -> Manifest:
        """Make a job what the manifest says.

        Raises:
            RefusedError: the cluster refuses it.
            ClusterError: the cluster can't answer.
        """
        name = manifest["metadata"]["name"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
        return self._json("PATCH", self._path(name), body=manifest, content=_APPLY, query=query)

    def patch(self, name: str, changes: Manifest) -> Manifest:
        """Change a job; null takes a field away.

        Raises:
            NoSuchJobError: there is none of that name.
            RefusedError: the cluster refuses the change.
            ClusterError: the cluster can't answer.
        """
        query = {"fieldManager": FIELD_MANAGER}
        return self._json("PATCH", self._path(name), body=changes, content=_MERGE, query=query, job=name)

    def log(self, pod: str, container: str, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """The lines that a container has written, and with `follow` those that it goes on to write.

        Raises:
            ClusterError: the cluster can't answer, or the container has written nothing yet.
        """
        query = {"container": container, "follow": "true" if follow else "", "tailLines": "" if tail is None else tail}
        path = f"/api/v1/namespaces/{_word(self.namespace)}/pods/{_word(pod)}/log"
        # Whoever follows waits as long as the container is silent.
        response = self._send("GET", path, query=query, timeout=(_TIMEOUT[0], None) if follow else _TIMEOUT)
        rest = b""
        try:
            for chunk in response.stream(4096):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"The log of {pod} broke off: {error}") from error
        finally:
            response.release_conn()
        if rest:
            yield rest.decode(errors="replace")

    def _path(self, name: str) -> str:
        if not re.fullmatch(DNS_SUBDOMAIN, name):
            raise NoSuchJobError(f"{name!r} is no name of a LoraDpoJob. `kubectl get ldj` lists the names.")
        return f"{_jobs(self.namespace)}/{name}"

    def _list(self, path: str, **query: str) -> list[Manifest]:
        found: list[Manifest] = []
        token = ""
        while True:
            page = self._json("GET", path, query={**query, "limit": _PAGE, "continue": token})
            found += page.get("items") or ()
            token = page.get("metadata", {}).get("continue", "")
            if not token:
                return found

    def _json(self, method: str, path: str, *, job: str = "", **request: Any) -> Manifest:
        answer: Manifest = json.loads(self._send(method, path, job=job, **request).read())
        return answer

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Manifest | None = None,
        content: str = "application/json",
        job: str = "",
        timeout: tuple[float, float | None] = _TIMEOUT,
    ) -> Any:
        words = self.api.param_serialize(
            method=method,
            resource_path=path,
            query_params=[(key, value) for key, value in (query or {}).items() if value != ""],
            header_params={"Accept": "application/json, */*", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            sent = self.api.call_api(
                *words[:2], header_params=words[2], body=words[3], post_params=words[4], _request_timeout=timeout
            )
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise UnreachableError(_silent(self.api.configuration.host, error)) from error
        response = sent.response
        if not 200 <= response.status < 300:
            raise error_of(response.status, response.read(), job=job, namespace=self.namespace)
        return response


def connect(*, kubeconfig: Path | None, context: str | None, namespace: str | None) -> Kube:
    """Find the cluster as kubectl does: `--kubeconfig`, `KUBECONFIG`, `~/.kube/config`, or the pod's own.

    Raises:
        UnreachableError: there is no usable kubeconfig.
    """
    # Whoever writes insecure-skip-tls-verify into a kubeconfig knows; kubectl doesn't complain at each call either.
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    settings = client.Configuration()
    settings.retries = 1
    chosen = None if kubeconfig is None else str(kubeconfig)
    try:
        if _in_a_pod(kubeconfig, context):
            config.load_incluster_config(client_configuration=settings)
            here = _ACCOUNT.read_text().strip() if _ACCOUNT.is_file() else None
        else:
            _, active = config.list_kube_config_contexts(config_file=chosen)
            contexts = {each["name"]: each for each in _}
            wanted = contexts.get(context, {}) if context else active
            config.load_kube_config(chosen, context, settings, persist_config=False)
            here = (wanted.get("context") or {}).get("namespace")
    except (config.ConfigException, OSError, yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        where = chosen or os.environ.get("KUBECONFIG") or "~/.kube/config"
        raise UnreachableError(
            f"No cluster is known: {where} can't be used ({str(error).strip().rstrip('.') or type(error).__name__}). "
            "Name a kubeconfig with --kubeconfig or KUBECONFIG; `kubectl config get-contexts` lists its contexts."
        ) from error
    return Kube(client.ApiClient(settings), namespace or here or "default")


def error_of(status: int, text: bytes, *, job: str, namespace: str) -> Exception:
    """The error that an HTTP status means, with the API server's own sentence where it gave one."""
    try:
        answer = json.loads(text)
        said = str(answer["message"])
        known = isinstance(answer.get("details"), dict) and bool(answer["details"].get("name"))
    except (ValueError, KeyError, TypeError):
        said, known = text[:300].decode(errors="replace").strip() or "no explanation", False
    match status:
        case 401:
            return ForbiddenError(f"The cluster doesn't know you ({said}). Log in again, or choose another --context.")
        case 403:
            return ForbiddenError(
                f"You may not do this: {said}. Ask for the cluster role edit (or view, to look only) in the namespace "
                f"{namespace}; the operator's chart adds LoraDpoJobs to both."
            )
        case 404 if job and known:
            return NoSuchJobError(
                f"There is no LoraDpoJob {job} in the namespace {namespace}. `kubectl get ldj --all-namespaces` lists "
                "all; -n chooses the namespace."
            )
        case 404 if not known:
            return NotInstalledError(
                f"This cluster doesn't know {KIND} ({API_VERSION}). Install the operator first: its chart brings the "
                "definition."
            )
        case 400 | 404 | 409 | 413 | 422:
            return RefusedError(f"The cluster refuses: {said}")
        case _:
            return ClusterError(f"The cluster answers with {status}: {said}")


def _silent(host: str, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    words = " ".join(str(reason).split())
    return (
        f"The cluster at {host} doesn't answer ({words[:300]}). Is it up, and does this machine reach it? "
        "`kubectl cluster-info` asks the same."
    )


def _in_a_pod(kubeconfig: Path | None, context: str | None) -> bool:
    named = kubeconfig is not None or context is not None or "KUBECONFIG" in os.environ
    return not named and "KUBERNETES_SERVICE_HOST" in os.environ


def _jobs(namespace: str | None) -> str:
    where = f"/namespaces/{_word(namespace)}" if namespace else ""
    return f"/apis/{API_VERSION}{where}/{PLURAL}"


def _word(text: str) -> str:
    """A user's word as one part of a path."""
    return urllib.parse.quote(text, safe="")
