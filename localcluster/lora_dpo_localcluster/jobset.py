"""The JobSet controller, with its webhooks on, as a process of the cluster."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lora_dpo_localcluster import controllers
from lora_dpo_localcluster.processes import Processes
from lora_dpo_localcluster.tools import KUBERNETES, Tools

_PORT = 9443
_POD_WEBHOOKS = ("mpod.kb.io", "vpod.kb.io")
_ONLY_ITS_PODS = {"matchExpressions": [{"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}]}


def crd_folder(tools: Tools) -> Path:
    """The folder with JobSet's custom resource definition."""
    return tools.folder(KUBERNETES) / "jobset-config" / "components" / "crd" / "bases"


def start(processes: Processes, tools: Tools) -> None:
    """Start the controller, without waiting. Its resource definition must be there already."""
    paths = processes.paths
    folder = paths.root / "jobset"
    folder.mkdir(exist_ok=True)
    # The API server's own certificate names 127.0.0.1, where the webhooks are called.
    for source, target in (("apiserver.crt", "tls.crt"), ("apiserver.key", "tls.key"), ("ca.crt", "ca.crt")):
        shutil.copy(paths.pki / source, folder / target)
    config = folder / "config.json"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
                "kind": "Configuration",
                "leaderElection": {"leaderElect": False},
                "internalCertManagement": {"enable": False},
                "webhook": {"port": _PORT, "certDir": str(folder)},
                "clientConnection": {"qps": 300, "burst": 500},
            }
        )
    )
    processes.start(
        "jobset",
        [
            tools.program(KUBERNETES, "jobset"),
            f"--config={config}",
            "--metrics-bind-address=127.0.0.1:8443",
            "--health-probe-bind-address=127.0.0.1:8081",
        ],
        env={"KUBECONFIG": str(paths.kubeconfig)},
    )


def webhook_manifests(source: str, authority: bytes) -> list[dict[str, Any]]:
    """JobSet's webhook configurations, called by URL instead of by service.

    The controller isn't a pod here, so there is no service to call. The pod webhooks keep the selector that JobSet's
    own installation gives them; without it every pod of the cluster would wait for this controller.

    Args:
        source: the text of the module's `webhook/manifests.yaml`.
        authority: the certificate that the webhook server's is signed with, PEM.
    """
    bundle = base64.b64encode(authority).decode()
    return [_by_url(document, bundle) for document in controllers.documents(source)]


PROBE: Mapping[str, Any] = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": "webhook-probe", "namespace": "default"},
    "spec": {
        "replicatedJobs": [
            {
                "name": "probe",
                "replicas": 1,
                "template": {
                    "spec": {"template": {"spec": {"containers": [{"name": "probe", "image": "localhost/pause:1"}]}}}
                },
            }
        ]
    },
}


def answered(made: str) -> bool:
    """Whether the mutating webhook filled in its default, given what a server-side dry run of `PROBE` made."""
    return '"completionMode"' in made


def webhook_source(tools: Tools) -> Path:
    """The module's own webhook configurations."""
    return tools.folder(KUBERNETES) / "jobset-config" / "components" / "webhook" / "manifests.yaml"


def _by_url(document: Mapping[str, Any], bundle: str) -> dict[str, Any]:
    kind = str(document["kind"])
    hooks = cast(Sequence[Mapping[str, Any]], document["webhooks"])
    return {
        "apiVersion": document["apiVersion"],
        "kind": kind,
        "metadata": {"name": f"jobset-{document['metadata']['name']}"},
        "webhooks": [
            {
                **hook,
                "clientConfig": {
                    "url": f"https://127.0.0.1:{_PORT}{hook['clientConfig']['service']['path']}",
                    "caBundle": bundle,
                },
                **({"objectSelector": _ONLY_ITS_PODS} if hook["name"] in _POD_WEBHOOKS else {}),
            }
            for hook in hooks
        ],
    }
