"""Everything the builders need, decided: no builder looks anything up or chooses a default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_dpo_api import wire
from lora_dpo_api.job import LoraDpoJobSpec
from lora_dpo_api.protocol import Phase
from lora_dpo_operator import names
from lora_dpo_operator.observed import Accepted
from lora_dpo_operator.placement import Placement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blueprint:
    """One job, ready to be built.

    Attributes:
        verdict: with the trainer's configuration.
        config_map: name of the ConfigMap that holds it.
        image: trainer image, pinned for the life of the job.
        queue_labels: Kueue's own labels on the job, for its JobSet.
        trainer_env: environment of every trainer pod, from the operator's settings.
        progress_peers: who may read rank 0's progress, as NetworkPolicyPeers; none means no NetworkPolicy.
        prepared_digest: what prepare found; empty until then.
        restarts_before: counted by JobSets that someone deleted; they are gone from what the next one may do.
        preemptions_before: the same of free restarts.
    """

    name: str
    namespace: str
    uid: str
    spec: LoraDpoJobSpec
    placement: Placement
    verdict: Accepted
    config_map: str
    image: str
    spec_hash: str
    trainer_env: tuple[tuple[str, str], ...] = ()
    progress_peers: tuple[Mapping[str, Any], ...] = ()
    queue_name: str | None = None
    queue_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prepared_digest: str = ""
    restarts_before: int = 0
    preemptions_before: int = 0

    @property
    def config(self) -> str:
        """The trainer's configuration file."""
        return self.verdict.config

    @property
    def owner_reference(self) -> dict[str, Any]:
        """The reference by which everything goes when the job is deleted."""
        return {
            "apiVersion": wire.API_VERSION,
            "kind": wire.KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def labels(self, phase: Phase | None = None) -> dict[str, str]:
        """Labels of an object of this job, and of its pods."""
        return names.labels(self.name, self.uid, phase)

    def metadata(self, name: str, labels: dict[str, str], annotations: dict[str, str] | None = None) -> dict[str, Any]:
        """Metadata of an object that this job owns."""
        pinned = {names.SPEC_HASH_ANNOTATION: self.spec_hash, names.CONFIG_MAP_ANNOTATION: self.config_map}
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": labels,
            "annotations": pinned | (annotations or {}),
            "ownerReferences": [self.owner_reference],
        }
