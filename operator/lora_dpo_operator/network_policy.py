"""The NetworkPolicy of a job's pods, where an administrator wants one: hosts reach each other, and few reach rank 0.

It restricts only where the cluster's network enforces such policies.
"""

from __future__ import annotations

from lora_dpo_api import protocol
from lora_dpo_operator import names
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.gateway import Manifest


def build(blueprint: Blueprint) -> Manifest:
    """The manifest. Pods of the job talk to each other on all ports; the named peers read progress."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": blueprint.metadata(names.network_policy(blueprint.name), blueprint.labels()),
        "spec": {
            "podSelector": {"matchLabels": blueprint.labels()},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": blueprint.labels()}}]},
                {
                    "from": [dict(peer) for peer in blueprint.progress_peers],
                    "ports": [{"port": protocol.PROGRESS_PORT, "protocol": "TCP"}],
                },
            ],
        },
    }
