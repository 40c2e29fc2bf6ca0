"""Kubeconfig files, with the certificates embedded so that a file can be copied alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from lora_dpo_localcluster.pki import KeyPair


def write(path: Path, *, cluster: str, server: str, authority: Path, user: KeyPair) -> None:
    """Write a kubeconfig, readable by its owner alone.

    Args:
        path: the file.
        cluster: name of cluster, user and context.
        server: URL of the API server.
        authority: certificate of the cluster's authority.
        user: certificate and key of the user.
    """
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": cluster, "cluster": {"server": server, "certificate-authority-data": _base64(authority)}}
        ],
        "users": [
            {
                "name": cluster,
                "user": {
                    "client-certificate-data": _base64(user.certificate),
                    "client-key-data": _base64(user.key),
                },
            }
        ],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
        "current-context": cluster,
    }
    path.touch(mode=0o600)
    # JSON is YAML, and every reader of a kubeconfig takes it.
    path.write_text(json.dumps(value, indent=1))


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
