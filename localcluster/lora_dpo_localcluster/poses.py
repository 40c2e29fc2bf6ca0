"""Nodes that pose as TPU hosts: the labels and the `google.com/tpu` capacity of a slice's hosts, without the chips.

The scheduler and the kubelet treat them as real, so a job with a slice's node selector and resource requests runs here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lora_dpo_api import errors as api_errors
from lora_dpo_api import tpu
from lora_dpo_localcluster import errors
from lora_dpo_localcluster.node import MOST, Node

POOL_LABEL = "cloud.google.com/gke-nodepool"
_TAINT_FREE_CPU_NODES = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Pose:
    """One slice whose hosts are posed.

    Attributes:
        machine_type: such as `ct5p-hightpu-4t`.
        topology: such as `2x2x1`.
    """

    machine_type: str
    topology: str

    @property
    def slice(self) -> tpu.TpuSlice:
        """The slice in the catalogue."""
        return tpu.resolve(machine_type=self.machine_type, topology=self.topology, accelerator_type=None)


def parse(text: str) -> Pose:
    """Read `MACHINE_TYPE=TOPOLOGY`.

    Raises:
        LocalClusterError: there is no such slice; the message lists what is allowed.
    """
    machine_type, equals, topology = text.partition("=")
    if not equals:
        raise errors.LocalClusterError(
            f"{text!r} is no slice: write MACHINE_TYPE=TOPOLOGY, such as ct5p-hightpu-4t=2x2x1."
        )
    pose = Pose(machine_type.strip(), topology.strip())
    try:
        pose.slice.hosts  # noqa: B018 - the look-up is the check
    except api_errors.SpecError as refused:
        raise errors.LocalClusterError(str(refused)) from refused
    return pose


def plan_nodes(count: int, poses: Sequence[Pose]) -> tuple[Node, ...]:
    """The nodes of a cluster: `count` ordinary ones, then each slice's hosts in a node pool of its own.

    Raises:
        LocalClusterError: too many or none.
    """
    nodes = [Node(number) for number in range(1, count + 1)]
    for index, pose in enumerate(poses):
        labels = {
            tpu.ACCELERATOR_LABEL: pose.slice.machine.accelerator,
            tpu.TOPOLOGY_LABEL: pose.topology,
            tpu.MACHINE_LABEL: pose.machine_type,
            POOL_LABEL: f"tpu-{index}",
        }
        for _ in range(pose.slice.hosts):
            nodes.append(Node(len(nodes) + 1, tuple(sorted(labels.items())), pose.slice.machine.chips_per_host))
    if count < _TAINT_FREE_CPU_NODES or len(nodes) > MOST:
        raise errors.LocalClusterError(
            f"A local cluster has 1 to {MOST} nodes, one of them ordinary; that would be {len(nodes)}."
        )
    return tuple(nodes)
