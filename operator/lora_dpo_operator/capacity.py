"""What a host asks of its node, and the nearest that the cluster has: an answer to "0/12 nodes are available"."""

from __future__ import annotations

import collections
from collections.abc import Mapping

from lora_dpo_api.tpu import ACCELERATOR_LABEL, CHIP_RESOURCE, MACHINE_LABEL, TOPOLOGY_LABEL
from lora_dpo_operator.nodes import Node
from lora_dpo_operator.pods import Pod

_SHOWN = 3


def sentence(pod: Pod, nodes: tuple[Node, ...]) -> str:
    """What a pod without a node asks for, and what there is.

    Args:
        pod: a host of the slice.
        nodes: the cluster's TPU hosts; empty where there are none, or the operator may not see them.
    """
    wanted = pod.spec.node_selector
    chips = pod.trainer_requests.get(CHIP_RESOURCE)
    asks = [f"{chips} {CHIP_RESOURCE}"] if chips else []
    asks += [f"a node with {', '.join(f'{key}={value}' for key, value in sorted(wanted.items()))}"] if wanted else []
    text = f"Each host asks for {' on '.join(asks)}" if asks else "Each host asks for any node"
    if ACCELERATOR_LABEL not in wanted or not nodes:
        return text
    kinds = collections.Counter(_kind(node) for node in nodes)
    ranked = sorted(kinds, key=lambda kind: (-_likeness(kind, wanted), kind))
    found = [f"{kinds[kind]} of {kind[0]} {kind[2]}" for kind in ranked[:_SHOWN]]
    nearest = "the nodes that match are taken or too few" if _likeness(ranked[0], wanted) == len(_WEIGHTS) else ""
    return f"{text}; {nearest or 'the nearest that exist'}: {', '.join(found)}"


_WEIGHTS = (ACCELERATOR_LABEL, TOPOLOGY_LABEL)


def _kind(node: Node) -> tuple[str, str, str]:
    """Machine type, accelerator, topology."""
    labels = node.metadata.labels
    return labels.get(MACHINE_LABEL, "?"), labels.get(ACCELERATOR_LABEL, ""), labels.get(TOPOLOGY_LABEL, "")


def _likeness(kind: tuple[str, str, str], wanted: Mapping[str, str]) -> int:
    return sum(value == wanted.get(label) for label, value in zip(_WEIGHTS, kind[1:], strict=True))
