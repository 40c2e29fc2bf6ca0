"""Nodes as far as the operator reads them: what they are, and whether they are about to go.

Labels and taints are GKE's: https://cloud.google.com/kubernetes-engine/docs/concepts/handle-disruption-gpu-tpu
"""

from __future__ import annotations

import datetime

from lora_dpo_operator.objects import KubeModel, ObjectMeta

MAINTENANCE_LABEL = "cloud.google.com/scheduled-maintenance-time"
"""Unix seconds at which the host's maintenance begins."""

ONGOING_LABEL = "cloud.google.com/active-node-maintenance"
TERMINATION_TAINT = "cloud.google.com/impending-node-termination"


class _Taint(KubeModel):
    key: str = ""


class _NodeSpec(KubeModel):
    taints: tuple[_Taint, ...] = ()


class Node(KubeModel):
    """A node."""

    metadata: ObjectMeta
    spec: _NodeSpec = _NodeSpec()

    @property
    def maintenance_at(self) -> datetime.datetime | None:
        """When its maintenance begins, where one is announced."""
        text = self.metadata.labels.get(MAINTENANCE_LABEL, "")
        return datetime.datetime.fromtimestamp(int(text), datetime.UTC) if text.isdigit() and len(text) < 12 else None

    @property
    def in_maintenance(self) -> bool:
        """Whether it is being drained for maintenance now."""
        return self.metadata.labels.get(ONGOING_LABEL) == "ONGOING"

    @property
    def terminating(self) -> bool:
        """Whether it is about to be taken away."""
        return any(taint.key == TERMINATION_TAINT for taint in self.spec.taints)
