"""CoreDNS: names of services and of a JobSet's pods."""

from __future__ import annotations

from lora_dpo_localcluster.namespace_init import ADDRESS
from lora_dpo_localcluster.processes import Processes
from lora_dpo_localcluster.tools import COREDNS, Tools


def start(processes: Processes, tools: Tools) -> None:
    """Start CoreDNS on the nodes' bridge, without waiting.

    Names live for one second, so that the hosts of a restarted slice find each other's new addresses at once. Other
    names are unknown: no query leaves the machine.
    """
    file = processes.paths.root / "Corefile"
    file.write_text(
        f""".:53 {{
  bind {ADDRESS}
  errors
  ready 127.0.0.1:8181
  kubernetes cluster.local {{
    kubeconfig {processes.paths.kubeconfig}
    ttl 1
  }}
}}
"""
    )
    processes.start("coredns", [tools.program(COREDNS, "coredns"), f"-conf={file}"])
