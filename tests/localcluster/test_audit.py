"""The API server's audit log, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_dpo_localcluster import audit
from lora_dpo_localcluster.audit import Call


def event(verb: str, code: int, decision: str, **target: str) -> dict[str, Any]:
    """As the API server writes it, as far as it matters."""
    user = {"username": "system:serviceaccount:lora-dpo-system:lora-dpo-operator"}
    answer, why = {"metadata": {}, "code": code}, {"authorization.k8s.io/decision": decision}
    return {"verb": verb, "user": user, "objectRef": target, "responseStatus": answer, "annotations": why}


def test_each_kind_of_call_is_told_once_as_rbac_names_it(tmp_path: Path) -> None:
    audit.write_policy(tmp_path / "audit")
    status = {"apiGroup": "training.loradpo.dev", "resource": "loradpojobs", "subresource": "status", "name": "tiny"}
    lines = [
        event("patch", 200, "allow", **status),
        event("patch", 200, "allow", **status | {"name": "other"}),
        # Nothing is made any more in a namespace that is going.
        event("patch", 403, "allow", **status),
        event("list", 403, "forbid", resource="nodes"),
        {"verb": "get", "user": {"username": "x"}, "requestURI": "/readyz"},
    ]
    (tmp_path / "audit" / audit.LOG_NAME).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    account = "lora-dpo-system/lora-dpo-operator"
    assert audit.read(tmp_path / "audit") == {
        Call(account, "patch", "training.loradpo.dev", "loradpojobs/status", allowed=True),
        Call(account, "list", "", "nodes", allowed=False),
    }


def test_only_service_accounts_are_logged(tmp_path: Path) -> None:
    audit.write_policy(tmp_path / "audit")
    first, last = json.loads((tmp_path / "audit" / audit.POLICY_NAME).read_text())["rules"]
    assert (first["level"], first["userGroups"]) == ("Metadata", ["system:serviceaccounts"])
    assert last == {"level": "None"}
