"""What the slice's pods ask of the cluster beside their image: nodes, taints, chips.

Label and taint keys are GKE's: https://cloud.google.com/kubernetes-engine/docs/how-to/tpus
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_dpo_api.hardware import Hardware, Platform
from lora_dpo_api.spec_running import Capacity, CapacityType, Tpu
from lora_dpo_api.tpu import CHIP_RESOURCE

_GKE = "cloud.google.com"
_TPU_TAINT = {"key": CHIP_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}

_CAPACITY_LABELS = {
    CapacityType.ON_DEMAND: {f"{_GKE}/gke-provisioning": "standard"},
    CapacityType.SPOT: {f"{_GKE}/gke-spot": "true"},
    CapacityType.RESERVATION: {},
    CapacityType.FLEX_START: {f"{_GKE}/gke-flex-start": "true"},
    CapacityType.QUEUED: {f"{_GKE}/gke-queued": "true"},
}
_TAINTED = (f"{_GKE}/gke-spot", f"{_GKE}/gke-flex-start", f"{_GKE}/gke-queued", f"{_GKE}/compute-class")
"""Labels whose nodes carry a taint of the same key and value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """The machines of a job, and how its pods get onto them.

    Attributes:
        simulated: ordinary nodes pose as TPU hosts, and the trainer runs on CPU.
    """

    hardware: Hardware
    node_selector: dict[str, str] = dataclasses.field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    simulated: bool = False

    @property
    def platform(self) -> Platform:
        """What the trainer must find."""
        return Platform.CPU if self.simulated else self.hardware.platform

    @property
    def devices(self) -> int:
        """JAX devices that all hosts together must see; 0 where nothing is promised."""
        return 0 if self.simulated else self.hardware.devices

    @property
    def on_tpu_nodes(self) -> bool:
        """Whether the pods need TPU hosts."""
        return self.hardware.platform is Platform.TPU

    @property
    def exclusive(self) -> bool:
        """Whether each slice must have a node pool of its own: slices of several TPU hosts."""
        return self.on_tpu_nodes and self.hardware.multi_host

    @property
    def needs_coordinator(self) -> bool:
        """Whether the hosts must be told of each other: on TPU, JAX finds them by itself."""
        return self.platform is Platform.CPU and self.hardware.processes > 1


def place(hardware: Hardware, tpu: Tpu | None, *, simulate: bool) -> Placement:
    """Where the pods go.

    Args:
        hardware: the machines.
        tpu: what the user wrote about them; absent on CPU.
        simulate: run TPU jobs on CPU, on nodes that pose as TPU hosts.
    """
    if tpu is None:
        return Placement(hardware=hardware, node_selector=dict(hardware.node_selector))
    labels = hardware.node_selector | _capacity_labels(tpu.capacity)
    if tpu.compute_class:
        labels[f"{_GKE}/compute-class"] = tpu.compute_class
    if tpu.node_pool:
        labels[f"{_GKE}/gke-nodepool"] = tpu.node_pool
    tolerations = (_TPU_TAINT, *(_tolerated(key, labels[key]) for key in _TAINTED if key in labels))
    return Placement(hardware=hardware, node_selector=labels, tolerations=tolerations, simulated=simulate)


def _capacity_labels(capacity: Capacity | None) -> dict[str, str]:
    if capacity is None:
        return {}
    labels = dict(_CAPACITY_LABELS[capacity.type])
    if capacity.reservation:
        labels[f"{_GKE}/reservation-name"] = capacity.reservation
        labels[f"{_GKE}/reservation-affinity"] = "specific"
    if capacity.reservation_project:
        labels[f"{_GKE}/reservation-project"] = capacity.reservation_project
    return labels


def _tolerated(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
