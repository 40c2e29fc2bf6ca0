"""Values of the chart's typical installations; the definition and the policies have tests of their own."""

from __future__ import annotations

from typing import Any

WITHOUT_DEFINITION: dict[str, Any] = {"crds": {"enabled": False}, "admissionPolicies": {"enabled": False}}

EVERYTHING: dict[str, Any] = {
    "global": {"imagePullSecrets": [{"name": "pull"}], "commonLabels": {"team": "ml"}},
    "fullnameOverride": "dpo",
    "replicaCount": 2,
    "image": {"repository": "registry.example.com/operator", "digest": f"sha256:{'a' * 64}", "pullPolicy": "Always"},
    "trainer": {
        "image": {"repository": "registry.example.com:5000/trainer", "tag": "v2"},
        "env": {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".local,10.0.0.0/8"},
        "simulateTpu": True,
        "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "sre"}}}]},
    },
    "watch": {"namespaces": ["team-a", "team-b"]},
    "webhook": {"enabled": True, "failurePolicy": "Fail", "port": 8443, "certManager": {"enabled": True}},
    "operator": {
        "resyncSeconds": 60,
        "recheckSeconds": 2.5,
        "servingSeconds": 300,
        "stalledSeconds": 1800,
        "progressSeconds": 5,
        "progressBudget": 50,
        "logLevel": "DEBUG",
        "logFormat": "text",
        "port": 9000,
        "ui": True,
    },
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "serviceAccount": {"name": "dpo-sa", "annotations": {"note": "x"}},
    "podLabels": {"cost-centre": "7"},
    "podAnnotations": {"note": "y"},
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
    "podDisruptionBudget": {"enabled": True},
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "apiServerCidrs": ["10.0.0.1/32"],
    },
    "prometheus": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "googleManaged": {"enabled": True},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "test": {"path": "gs://bucket/trial", "serviceAccountName": "trainer"},
}

MONITORED: dict[str, Any] = {
    "prometheus": {
        "serviceMonitor": {"enabled": True},
        "podMonitor": {"enabled": True},
        "googleManaged": {"enabled": True},
        "rules": {"enabled": True},
    },
    "test": {"storageClassName": "fast"},
}

BARE: dict[str, Any] = {
    "webhook": {"enabled": True, "secretName": "certificate", "caBundle": "-----BEGIN CERTIFICATE-----"},
    "rbac": {"create": False, "aggregate": False},
    "serviceAccount": {"create": False, "name": "mine"},
    "replicaCount": 0,
}

SCENARIOS = {
    "default": WITHOUT_DEFINITION,
    "everything": EVERYTHING | WITHOUT_DEFINITION,
    "monitored": MONITORED | WITHOUT_DEFINITION,
    "bare": BARE | WITHOUT_DEFINITION,
}
