"""What the operator may do, against what it did in all tests of this folder, as the API server logged it.

Runs last, and only where every other test runs too (`conftest.py` sees to it): fewer would not use every right.
"""

from __future__ import annotations

from lora_dpo_api import yaml12
from lora_dpo_localcluster.provider import Cluster

from .conftest import ROOT

ACCOUNT = "lora-dpo-system/lora-dpo-operator"
ROLE = ROOT / "helm" / "lora-dpo-operator" / "files" / "role-rules.yaml"
NEVER_CALLED = {("update", "training.loradpo.dev", "loradpojobs/finalizers")}
"""Asked for by an admission plugin that not every cluster has, never by a call."""


def test_the_operator_uses_every_right_that_it_has_and_asked_for_no_other(cluster: Cluster) -> None:
    granted = {
        (verb, group, resource)
        for rule in yaml12.loads(ROLE.read_text())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    calls = [call for call in cluster.calls() if call.account == ACCOUNT]
    assert not [call for call in calls if not call.allowed]
    assert {(call.verb, call.group, call.resource) for call in calls} == granted - NEVER_CALLED
