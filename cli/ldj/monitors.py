"""From ServiceMonitors and PodMonitors to Prometheus's own configuration, as prometheus-operator translates them.

For a Prometheus without that operator, and without the discovery of Kubernetes objects (Debian's): what discovery
would find is written into files, with the labels that it would give, so that the monitors' own selectors, ports and
relabelings decide what is scraped and under which labels. Sharding and what these monitors don't use is left out.

Sources: prometheus-operator, pkg/prometheus/promcfg.go; Prometheus, "kubernetes_sd_config".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Manifest = Mapping[str, Any]
Target = dict[str, Any]
"""One group of Prometheus's file discovery: `targets` and `labels`."""

SERVICE_MONITOR, POD_MONITOR = "ServiceMonitor", "PodMonitor"
_META = "__meta_kubernetes_"
_NOT_IN_LABELS = re.compile(r"[^a-zA-Z0-9_]")
_RELABELING = {"sourceLabels": "source_labels", "targetLabel": "target_label"}


def scrape_configs(monitors: Sequence[Manifest], folder: Path, *, interval: str | None = None) -> list[dict[str, Any]]:
    """The `scrape_configs` of monitors.

    Args:
        monitors: ServiceMonitors and PodMonitors.
        folder: where the files of `target_files` lie.
        interval: in place of the monitors' own.
    """
    return [
        _scrape_config(monitor, endpoint, index, folder, interval)
        for monitor in monitors
        for index, endpoint in enumerate(_endpoints(monitor))
    ]


def target_files(monitors: Sequence[Manifest], objects: Sequence[Manifest]) -> dict[str, list[Target]]:
    """What discovery finds for each monitor, by file name.

    Args:
        monitors: as above.
        objects: pods, Services and EndpointSlices of all namespaces, as the API server gives them.
    """
    found = {}
    for monitor in monitors:
        namespaces = _namespaces(monitor)
        near = [made for made in objects if namespaces is None or made["metadata"]["namespace"] in namespaces]
        discover = _of_services if monitor["kind"] == SERVICE_MONITOR else _of_pods
        for index, _ in enumerate(_endpoints(monitor)):
            found[_file(monitor, index)] = list(discover(near))
    return found


def _scrape_config(
    monitor: Manifest, endpoint: Manifest, index: int, folder: Path, interval: str | None
) -> dict[str, Any]:
    rules = _service_rules if monitor["kind"] == SERVICE_MONITOR else _pod_rules
    written: dict[str, Any] = {
        "job_name": _job_name(monitor, index),
        "honor_labels": endpoint.get("honorLabels", False),
        "file_sd_configs": [{"files": [str(folder / _file(monitor, index))], "refresh_interval": "5s"}],
        "scrape_interval": interval or endpoint["interval"],
        "scrape_timeout": interval or endpoint["scrapeTimeout"],
        "metrics_path": endpoint.get("path", "/metrics"),
        "relabel_configs": [
            {"source_labels": ["job"], "target_label": "__tmp_prometheus_job_name"},
            *rules(monitor, endpoint),
            *(
                {_RELABELING.get(key, key): value for key, value in rule.items()}
                for rule in endpoint.get("relabelings", ())
            ),
        ],
    }
    return written


def _service_rules(monitor: Manifest, endpoint: Manifest) -> list[dict[str, Any]]:
    target = [f"{_META}endpoint_address_target_kind", f"{_META}endpoint_address_target_name"]
    return [
        *_selected(monitor, "service"),
        _keep(f"{_META}endpoint_port_name", endpoint["port"]),
        {
            "source_labels": target,
            "separator": ";",
            "regex": "Node;(.*)",
            "replacement": "${1}",
            "target_label": "node",
        },
        {"source_labels": target, "separator": ";", "regex": "Pod;(.*)", "replacement": "${1}", "target_label": "pod"},
        _copy("namespace", "namespace"),
        _copy("service_name", "service"),
        _copy("pod_name", "pod"),
        _copy("pod_container_name", "container"),
        _NOT_ENDED,
        {**_copy("service_name", "job"), "replacement": "${1}"},
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]


def _pod_rules(monitor: Manifest, endpoint: Manifest) -> list[dict[str, Any]]:
    metadata = monitor["metadata"]
    return [
        _NOT_ENDED,
        *_selected(monitor, "pod"),
        _keep(f"{_META}pod_container_port_name", endpoint["port"]),
        _copy("namespace", "namespace"),
        _copy("pod_container_name", "container"),
        _copy("pod_name", "pod"),
        {"target_label": "job", "replacement": f"{metadata['namespace']}/{metadata['name']}"},
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]


_NOT_ENDED = {"action": "drop", "source_labels": [f"{_META}pod_phase"], "regex": "(Failed|Succeeded)"}


def _selected(monitor: Manifest, role: str) -> list[dict[str, Any]]:
    wanted: Mapping[str, str] = monitor["spec"]["selector"]["matchLabels"]
    return [
        {
            "action": "keep",
            "source_labels": [f"{_META}{role}_label_{_name(key)}", f"{_META}{role}_labelpresent_{_name(key)}"],
            "regex": f"({value});true",
        }
        for key, value in sorted(wanted.items())
    ]


def _keep(label: str, value: str) -> dict[str, Any]:
    return {"action": "keep", "source_labels": [label], "regex": value}


def _copy(meta: str, label: str) -> dict[str, Any]:
    return {"source_labels": [f"{_META}{meta}"], "target_label": label}


def _of_pods(objects: Sequence[Manifest]) -> Iterator[Target]:
    """The role `pod`: one target for each port of each container."""
    for pod in (made for made in objects if made["kind"] == "Pod" and made.get("status", {}).get("podIP")):
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", ()):
                labels = _pod_labels(pod) | {
                    f"{_META}pod_container_name": container["name"],
                    f"{_META}pod_container_port_name": port.get("name", ""),
                }
                yield {"targets": [f"{pod['status']['podIP']}:{port['containerPort']}"], "labels": labels}


def _of_services(objects: Sequence[Manifest]) -> Iterator[Target]:
    """The role `endpoints`: one target for each port of each address behind a Service."""
    services = {_key(made): made for made in objects if made["kind"] == "Service"}
    pods = {_key(made): made for made in objects if made["kind"] == "Pod"}
    for found in (made for made in objects if made["kind"] == "EndpointSlice"):
        namespace = found["metadata"]["namespace"]
        service = services.get((namespace, found["metadata"]["labels"].get("kubernetes.io/service-name", "")))
        if service is None:
            continue
        for endpoint in found.get("endpoints") or ():
            reference = endpoint.get("targetRef") or {}
            pod = pods.get((namespace, reference.get("name", ""))) if reference.get("kind") == "Pod" else None
            labels = {
                f"{_META}namespace": namespace,
                f"{_META}service_name": service["metadata"]["name"],
                f"{_META}endpoint_address_target_kind": reference.get("kind", ""),
                f"{_META}endpoint_address_target_name": reference.get("name", ""),
                **_labels("service", service),
                **(_pod_labels(pod) if pod else {}),
            }
            for port in found.get("ports") or ():
                named = labels | {f"{_META}endpoint_port_name": port.get("name") or ""}
                yield {"targets": [f"{address}:{port['port']}" for address in endpoint["addresses"]], "labels": named}


def _pod_labels(pod: Manifest) -> dict[str, str]:
    return {
        f"{_META}namespace": pod["metadata"]["namespace"],
        f"{_META}pod_name": pod["metadata"]["name"],
        f"{_META}pod_phase": pod["status"].get("phase", ""),
        **_labels("pod", pod),
    }


def _labels(role: str, made: Manifest) -> dict[str, str]:
    found: Mapping[str, str] = made["metadata"].get("labels") or {}
    return {f"{_META}{role}_label_{_name(key)}": value for key, value in found.items()} | {
        f"{_META}{role}_labelpresent_{_name(key)}": "true" for key in found
    }


def _endpoints(monitor: Manifest) -> Sequence[Manifest]:
    endpoints: Sequence[Manifest] = monitor["spec"][
        "endpoints" if monitor["kind"] == SERVICE_MONITOR else "podMetricsEndpoints"
    ]
    return endpoints


def _namespaces(monitor: Manifest) -> set[str] | None:
    """Where its objects lie; None means everywhere."""
    selector = monitor["spec"].get("namespaceSelector", {})
    if selector.get("any"):
        return None
    return set(selector.get("matchNames") or [monitor["metadata"]["namespace"]])


def _job_name(monitor: Manifest, index: int) -> str:
    kind = monitor["kind"][0].lower() + monitor["kind"][1:]
    return f"{kind}/{monitor['metadata']['namespace']}/{monitor['metadata']['name']}/{index}"


def _file(monitor: Manifest, index: int) -> str:
    return f"{_job_name(monitor, index).replace('/', '.')}.json"


def _key(made: Manifest) -> tuple[str, str]:
    return made["metadata"]["namespace"], made["metadata"]["name"]


def _name(label: str) -> str:
    """A label of Kubernetes, as Prometheus writes it."""
    return _NOT_IN_LABELS.sub("_", label)
