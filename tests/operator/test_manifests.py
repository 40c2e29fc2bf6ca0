"""What the installed operator may do, and how it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lora_dpo_operator import gateway, handlers, observe, reconcile, resync

ROOT = Path(__file__).parents[2]
MANIFESTS = list(YAML(typ="safe", pure=True).load_all((ROOT / "operator" / "manifests" / "install.yaml").read_text()))
NAME = "lora-dpo-operator"
VERBS = {"get": {"get"}, "list": {"list"}, "create": {"create"}, "apply": {"create", "patch"}, "delete": {"delete"}}


def manifest(kind: str) -> dict[str, Any]:
    return next(found for found in MANIFESTS if (found["kind"], found["metadata"]["name"]) == (kind, NAME))


def granted() -> dict[str, set[str]]:
    """Resource to verbs."""
    return {resource: set(rule["verbs"]) for rule in manifest("ClusterRole")["rules"] for resource in rule["resources"]}


def test_secrets_are_never_read() -> None:
    assert "secrets" not in granted()
    assert all("*" not in verbs and resource != "*" for resource, verbs in granted().items())


def test_what_the_code_calls_is_granted() -> None:
    sources = "".join(Path(str(module.__file__)).read_text() for module in (observe, reconcile, resync))
    calls = re.findall(r"gateway\.(get|list|create|delete)\(\s*([A-Z_]+),", sources)
    assert calls
    for verb, constant in calls:
        resource = getattr(gateway, constant).plural
        assert VERBS[verb] <= granted()[resource], f"{verb} {resource}"
    assert {"create", "get"} <= granted()["configmaps"]
    assert {"create", "patch"} <= granted()["jobsets"]
    assert {"create", "patch", "delete"} <= granted()["jobs"]
    assert granted()["loradpojobs/status"] == {"patch"}


def test_what_is_watched_is_granted() -> None:
    assert handlers.pod_changed is not None
    for resource in ("loradpojobs", "jobsets", "jobs", "pods"):
        assert {"list", "watch"} <= granted()[resource]


def test_the_operator_meets_the_restricted_standard() -> None:
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert manifest("Deployment")["spec"]["strategy"] == {"type": "Recreate"}
