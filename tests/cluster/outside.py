"""What lies outside of the cluster, made to fail: a way to the bucket, the hub, a registry, all in one pod."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from lora_dpo_localcluster.image import Image

from .conftest import Kubectl, wait_for
from .loradpojobs import ORDINARY_NODES

_SERVERS = Path(__file__).with_name("outside_servers.py")
_HUB = Path(__file__).parents[1] / "trainer" / "fake_hub.py"
_POD = "outside"


@dataclasses.dataclass(frozen=True, slots=True)
class Outside:
    """The servers, as pods reach them.

    Attributes:
        node: where they run: a node's own address is the only one that it asks for images without TLS.
        address: their host.
        ports: of the way to the bucket, the hub, and the registry.
    """

    kubectl: Kubectl
    namespace: str
    node: str
    address: str
    ports: tuple[int, int, int]

    @property
    def bucket_env(self) -> list[dict[str, str]]:
        """Environment of a trainer that reaches its bucket this way."""
        url = f"http://{self.address}:{self.ports[0]}"
        return [{"name": name, "value": url} for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")]

    @property
    def hub_env(self) -> list[dict[str, str]]:
        """Environment of a trainer that takes this hub for the real one."""
        return [{"name": "HF_ENDPOINT", "value": f"http://{self.address}:{self.ports[1]}"}]

    @property
    def registry(self) -> str:
        """The registry, for images of pods on `node`."""
        return f"localhost:{self.ports[2]}"

    def rule(self, bucket: str, rule: str, seconds: float | None = None) -> None:
        """Let a bucket be `read-only`, `expired`, `away` or `open`, for good or for so long."""
        path = f"rules/{bucket.removeprefix('gs://')}/{rule}" + (f"/{seconds}" if seconds else "")
        self.kubectl.text("get", "--raw", _path(self, path))


def start(kubectl: Kubectl, namespace: str, image: Image) -> Outside:
    """Start the servers in a namespace, which takes them away with it, and wait until they answer."""
    first = random.randrange(20_000, 29_990)
    ports = (first, first + 1, first + 2)
    files = {file.name: file.read_text() for file in (_SERVERS, _HUB)}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _POD}, "data": files}
    kubectl.text("-n", namespace, "create", "-f", "-", stdin=config)
    kubectl.text("-n", namespace, "create", "-f", "-", stdin=_pod(kubectl, image, ports))
    kubectl.text("-n", namespace, "wait", "--for=condition=Ready", f"pod/{_POD}", "--timeout=60s")
    made = kubectl.json("-n", namespace, "get", "pod", _POD)
    found = Outside(kubectl, namespace, made["spec"]["nodeName"], made["status"]["hostIP"], ports)
    wait_for(lambda: kubectl("get", "--raw", _path(found, "rules/none/open")).returncode == 0, "the servers outside")
    return found


def _path(outside: Outside, path: str) -> str:
    return f"/api/v1/namespaces/{outside.namespace}/pods/{_POD}:{outside.ports[0]}/proxy/{path}"


def _pod(kubectl: Kubectl, image: Image, ports: tuple[int, int, int]) -> dict[str, Any]:
    bucket = kubectl.cluster.bucket.pod_url
    container = {
        "name": "servers",
        "image": image.name,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", f"/srv/{_SERVERS.name}", bucket, *map(str, ports)],
        "volumeMounts": [{"name": "programs", "mountPath": "/srv"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _POD},
        "spec": {
            "hostNetwork": True,
            "affinity": ORDINARY_NODES,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "programs", "configMap": {"name": _POD}}],
        },
    }
