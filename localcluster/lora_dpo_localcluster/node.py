"""Nodes: each a containerd and a kubelet of its own, with an address and a range of pod addresses on one bridge."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lora_dpo_localcluster import kubeconfig, pause, pki, store
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.namespace_init import BRIDGE, NETWORK
from lora_dpo_localcluster.processes import Processes
from lora_dpo_localcluster.tools import CONTAINERD, KUBERNETES, Tools

MOST = 200
_PREFIX = NETWORK.partition("/")[2]


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One node.

    Attributes:
        number: from 1; decides its addresses.
        labels: extra labels, for example those of a TPU host.
        tpu_chips: `google.com/tpu` that the node pretends to have.
    """

    number: int
    labels: tuple[tuple[str, str], ...] = ()
    tpu_chips: int = 0

    @property
    def name(self) -> str:
        """`node1` and so on."""
        return f"node{self.number}"

    @property
    def address(self) -> str:
        """The node's own address on the bridge."""
        return f"10.89.0.{self.number}"

    @property
    def pods(self) -> tuple[str, str]:
        """The first and the last address of its pods."""
        return f"10.89.{self.number}.1", f"10.89.{self.number}.254"

    @property
    def socket(self) -> str:
        """The socket of containerd, in the cluster's own /run."""
        return f"/run/{self.name}/containerd.sock"

    def folder(self, processes: Processes) -> Path:
        """What the node keeps on disk."""
        return processes.paths.root / "nodes" / self.name


def start_containerd(node: Node, processes: Processes, tools: Tools) -> None:
    """Start a node's container runtime with the images of the store, without waiting."""
    folder = node.folder(processes)
    (folder / "cni").mkdir(parents=True, exist_ok=True)
    (folder / "cni" / "10-bridge.conflist").write_text(json.dumps(_cni(node, folder)))
    store.current().seed(folder / "containerd")
    config = folder / "containerd.toml"
    config.write_text(_containerd_config(node, folder))
    binaries = tools.folder(CONTAINERD)
    processes.start(
        f"containerd-{node.name}",
        [binaries / "containerd", f"--config={config}"],
        # The shim is looked up beside containerd; runc, nft and mount are the machine's.
        env={"PATH": f"{binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    )


def wait_for_containerd(node: Node, processes: Processes, tools: Tools) -> None:
    """Wait until containerd answers and has the sandbox image.

    Raises:
        NotReadyError: it doesn't answer.
        CommandError: the image can't be imported.
    """

    def answers() -> bool:
        return subprocess.run(ctr(node, processes, tools, ["version"]), capture_output=True).returncode == 0

    processes.wait(f"containerd-{node.name}", answers, f"containerd of {node.name}", timeout=60)
    import_image(node, processes, tools, Image(pause.IMAGE, pause.image_archive()))


def start_kubelet(node: Node, processes: Processes, tools: Tools, authority: pki.Authority, api_port: int) -> None:
    """Start a node's kubelet, without waiting."""
    paths, folder = processes.paths, node.folder(processes)
    pair = authority.issue(
        f"kubelet-{node.name}",
        f"system:node:{node.name}",
        groups=("system:nodes",),
        hosts=(node.address, node.name),
    )
    file = folder / "kubelet.kubeconfig"
    folder.mkdir(parents=True, exist_ok=True)
    kubeconfig.write(
        file,
        cluster=f"ldj-{paths.name}",
        server=f"https://127.0.0.1:{api_port}",
        authority=authority.certificate_file,
        user=pair,
    )
    (folder / "resolv.conf").write_text("nameserver 10.89.0.1\n")
    config = folder / "kubelet.json"
    config.write_text(json.dumps(_kubelet_config(node, processes, pair), indent=1))
    labels = ",".join(f"{key}={value}" for key, value in node.labels)
    processes.start(
        f"kubelet-{node.name}",
        [
            tools.program(KUBERNETES, "kubelet"),
            f"--config={config}",
            f"--kubeconfig={file}",
            f"--root-dir={folder / 'kubelet'}",
            f"--cert-dir={folder / 'kubelet' / 'pki'}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
            *([f"--node-labels={labels}"] if labels else []),
        ],
    )


def start_proxy(processes: Processes, tools: Tools) -> None:
    """Start kube-proxy, once for all nodes: they share one network namespace. Doesn't wait."""
    processes.start(
        "kube-proxy",
        [
            tools.program(KUBERNETES, "kube-proxy"),
            f"--kubeconfig={processes.paths.kubeconfig}",
            "--proxy-mode=nftables",
            "--hostname-override=node1",
            # The machine's own limits aren't ours to change.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ],
    )


def ctr(node: Node, processes: Processes, tools: Tools, argv: Sequence[str | Path]) -> list[str]:
    """A command of containerd's own client, on the images and containers of Kubernetes."""
    program = tools.program(CONTAINERD, "ctr")
    return processes.namespace.inner_command([str(program), "-a", node.socket, "-n", "k8s.io", *map(str, argv)])


def import_image(node: Node, processes: Processes, tools: Tools, image: Image) -> None:
    """Give a node an image; layers that it has aren't copied.

    Raises:
        CommandError: containerd refuses it.
    """
    store.import_image(ctr(node, processes, tools, []), image)


def add_addresses(nodes: Sequence[Node], processes: Processes) -> None:
    """Give the bridge the addresses of the nodes after the first, which it has from the start."""
    for node in nodes:
        if node.number > 1:
            command = ["ip", "addr", "replace", f"{node.address}/{_PREFIX}", "dev", BRIDGE]
            subprocess.run(processes.namespace.network_command(command), check=True)


def _cni(node: Node, folder: Path) -> dict[str, object]:
    first, last = node.pods
    return {
        "cniVersion": "1.0.0",
        "name": "ldj",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(folder / "addresses"),
                    "ranges": [[{"subnet": NETWORK, "rangeStart": first, "rangeEnd": last, "gateway": "10.89.0.1"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def _containerd_config(node: Node, folder: Path) -> str:
    return f"""version = 3
root = "{folder / "containerd"}"
state = "/run/{node.name}/containerd"
[grpc]
  address = "{node.socket}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause.IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE a score can't be lowered.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{folder / "cni"}"
"""


def _kubelet_config(node: Node, processes: Processes, pair: pki.KeyPair) -> dict[str, object]:
    folder = node.folder(processes)
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(processes.paths.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pair.certificate),
        "tlsPrivateKeyFile": str(pair.key),
        "address": node.address,
        "healthzBindAddress": node.address,
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"{processes.paths.cgroup}/{node.name}",
        # The machine's own control groups stay as they are: containers get theirs below cgroupRoot, nothing else does.
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        # More needs CAP_SYS_RESOURCE, as do the limits that this gate leaves alone.
        "maxOpenFiles": 20000,
        "featureGates": {"KubeletInUserNamespace": True},
        "localStorageCapacityIsolation": False,
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "podLogsDir": str(folder / "pod-logs"),
        "clusterDNS": ["10.89.0.1"],
        "clusterDomain": "cluster.local",
        "resolvConf": str(folder / "resolv.conf"),
        "maxPods": 200,
        "serializeImagePulls": False,
        # A full disk of this machine mustn't evict a test's pods or delete their images.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "5s",
        "shutdownGracePeriod": "0s",
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
    }
