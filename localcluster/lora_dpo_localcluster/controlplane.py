"""etcd, the API server, the controller manager and the scheduler."""

from __future__ import annotations

from pathlib import Path

from lora_dpo_localcluster import audit, kubeconfig, pki
from lora_dpo_localcluster.namespace_init import ADDRESS
from lora_dpo_localcluster.processes import Processes
from lora_dpo_localcluster.tools import KUBERNETES, Tools

SERVICES = "10.96.0.0/16"
_FIRST_SERVICE = "10.96.0.1"
_ETCD = "http://127.0.0.1:2379"


def write_credentials(processes: Processes, authority: pki.Authority, api_port: int) -> None:
    """Write the control plane's certificates and the administrator's kubeconfig."""
    paths = processes.paths
    hosts = ("127.0.0.1", _FIRST_SERVICE, ADDRESS, "localhost", "kubernetes.default.svc", "kubernetes.default")
    authority.issue("apiserver", "kube-apiserver", hosts=hosts)
    admin = authority.issue("admin", "admin", groups=("system:masters",))
    pki.service_account_keys(paths.pki)
    kubeconfig.write(
        paths.kubeconfig,
        cluster=f"ldj-{paths.name}",
        server=f"https://127.0.0.1:{api_port}",
        authority=authority.certificate_file,
        user=admin,
    )


def start_api_server(processes: Processes, tools: Tools, api_port: int) -> None:
    """Start etcd and the API server, without waiting.

    The API server listens on the same port inside the cluster's network and, forwarded, on this machine's loopback
    address, so one kubeconfig works on both sides.
    """
    folder, paths = tools.folder(KUBERNETES), processes.paths
    processes.start(
        "etcd",
        [
            folder / "server",
            f"--data-dir={paths.root / 'etcd'}",
            f"--listen-client-urls={_ETCD}",
            f"--advertise-client-urls={_ETCD}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            # The data dies with the cluster: waiting for the disk buys nothing.
            "--unsafe-no-fsync",
            "--log-level=error",
        ],
    )
    key = paths.pki
    audit.write_policy(paths.audit)
    processes.start(
        "kube-apiserver",
        [
            folder / "kube-apiserver",
            f"--etcd-servers={_ETCD}",
            f"--secure-port={api_port}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={ADDRESS}",
            f"--tls-cert-file={key / 'apiserver.crt'}",
            f"--tls-private-key-file={key / 'apiserver.key'}",
            f"--client-ca-file={key / 'ca.crt'}",
            f"--service-account-key-file={key / 'sa.pub'}",
            f"--service-account-signing-key-file={key / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={key / 'admin.crt'}",
            f"--kubelet-client-key={key / 'admin.key'}",
            "--enable-admission-plugins=NodeRestriction",
            # `kubectl logs` would look a node's name up in DNS otherwise.
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={paths.audit / audit.POLICY_NAME}",
            f"--audit-log-path={paths.audit / audit.LOG_NAME}",
        ],
    )


def start_controllers(processes: Processes, tools: Tools) -> None:
    """Start the controller manager and the scheduler, without waiting."""
    folder, paths = tools.folder(KUBERNETES), processes.paths
    processes.start(
        "kube-controller-manager",
        [
            folder / "kube-controller-manager",
            f"--kubeconfig={paths.kubeconfig}",
            f"--service-account-private-key-file={paths.pki / 'sa.key'}",
            f"--root-ca-file={paths.pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={paths.pki / 'ca.crt'}",
            f"--cluster-signing-key-file={paths.pki / 'ca.key'}",
            "--use-service-account-credentials=false",
            "--leader-elect=false",
            # One identity does all controllers' requests, so it needs room for all of them.
            "--kube-api-qps=300",
            "--kube-api-burst=500",
        ],
    )
    processes.start(
        "kube-scheduler",
        [folder / "kube-scheduler", f"--kubeconfig={paths.kubeconfig}", "--leader-elect=false"],
    )


def log_of_api_server(processes: Processes) -> Path:
    """Where the API server's output is."""
    return processes.log("kube-apiserver")
