"""What programs in a cluster ask of its API server: its own audit log, of service accounts alone.

Source: https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from lora_dpo_localcluster import state

POLICY_NAME, LOG_NAME = "policy.json", "audit.log"
_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Call:
    """One kind of call.

    Attributes:
        account: namespace/name of the service account.
        verb: as RBAC names it.
        group: API group; empty for the core.
        resource: with its subresource: `loradpojobs/status`.
        allowed: its rights sufficed; what became of it then is another matter: a quota, too, answers with 403.
    """

    account: str
    verb: str
    group: str
    resource: str
    allowed: bool


def write_policy(folder: Path) -> None:
    """Write what is to be logged into the folder that will hold the log."""
    folder.mkdir(parents=True)
    state.write_json(folder / POLICY_NAME, _POLICY)


def read(folder: Path) -> frozenset[Call]:
    """The calls of service accounts to resources so far, each kind once."""
    return frozenset(
        _call(event)
        for line in (folder / LOG_NAME).read_text().splitlines()
        if line and "objectRef" in (event := json.loads(line))
    )


def _call(event: dict[str, dict[str, str]]) -> Call:
    target = event["objectRef"]
    resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
    account = event["user"]["username"].removeprefix("system:serviceaccount:").replace(":", "/")
    allowed = event["annotations"]["authorization.k8s.io/decision"] == "allow"
    return Call(account, str(event["verb"]), target.get("apiGroup", ""), resource, allowed)
