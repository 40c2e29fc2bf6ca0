"""A cluster in Docker containers, made by kind, where a Docker engine answers.

The commands are the real ones, but they have only been checked against recorded arguments: the machines that this
was written on have no Docker engine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_dpo_localcluster import (
    audit,
    bucket,
    dockerfile,
    errors,
    images,
    jobset,
    locks,
    namespace,
    poses,
    state,
    tools,
    waiting,
)
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.node import Node
from lora_dpo_localcluster.provider import Shape, Status
from lora_dpo_localcluster.tools import FAKE_GCS_SERVER, KUBERNETES, Report

_NODE_IMAGE = f"kindest/node:v{tools.KUBERNETES_VERSION}"
_TIMEOUT = 300
_AUDIT_FOLDER = "/var/log/ldj-audit"
_AUDITED = {
    "kind": "ClusterConfiguration",
    "apiServer": {
        "extraArgs": {
            "audit-policy-file": f"{_AUDIT_FOLDER}/{audit.POLICY_NAME}",
            "audit-log-path": f"{_AUDIT_FOLDER}/{audit.LOG_NAME}",
        },
        "extraVolumes": [{"name": "audit", "hostPath": _AUDIT_FOLDER, "mountPath": _AUDIT_FOLDER}],
    },
}
_JOBSET = ("-n", "jobset-system", "scale", "deployment/jobset-controller-manager")


def engine_answers() -> bool:
    """Whether a Docker engine is there and `kind` can use it."""
    if shutil.which("docker") is None or shutil.which("kind") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def configuration(planned: Sequence[Node], audited: Path) -> dict[str, object]:
    """The configuration that kind reads: node 1 is the control plane, and runs pods too, as it does without Docker.

    Args:
        planned: the nodes.
        audited: the folder of `audit`; see https://kind.sigs.k8s.io/docs/user/auditing/.
    """
    control_plane = {
        "kubeadmConfigPatches": [json.dumps(_AUDITED)],
        "extraMounts": [{"hostPath": str(audited), "containerPath": _AUDIT_FOLDER}],
    }
    return {
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "kind": "Cluster",
        "nodes": [
            {
                "role": "control-plane" if one.number == 1 else "worker",
                "image": _NODE_IMAGE,
                **({"labels": dict(one.labels)} if one.labels else {}),
                **(control_plane if one.number == 1 else {}),
            }
            for one in planned
        ],
    }


@dataclasses.dataclass(frozen=True, slots=True)
class KindCluster:
    """See `provider.Cluster`."""

    paths: state.ClusterPaths

    @property
    def name(self) -> str:
        """Its name."""
        return self.paths.name

    @property
    def kind_name(self) -> str:
        """What kind calls it."""
        return f"ldj-{self.name}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.paths.kubeconfig

    @property
    def kubectl(self) -> Path:
        """The kubectl built with the other tools."""
        return tools.built_folder(KUBERNETES) / "kubectl"

    @property
    def bucket(self) -> bucket.BucketServer:
        """The storage server: a process of this machine, which pods reach over Docker's gateway."""
        value = self._read()
        return bucket.server(int(str(value["bucketPort"])), str(value["gateway"]))

    def up(self, shape: Shape, report: Report) -> None:
        """Create it with kind, then install JobSet's own manifests and start the storage server."""
        planned = poses.plan_nodes(shape.nodes, shape.poses)
        built = tools.ensure(report, (KUBERNETES, FAKE_GCS_SERVER))
        with locks.locked(self.paths.lock):
            if self.status().running:
                report(f"the cluster {self.name} is up already")
                return
            self._remove()
            started = time.monotonic()
            self.paths.logs.mkdir(parents=True)
            config = self.paths.root / "kind.json"
            audit.write_policy(self.paths.audit)
            config.write_text(json.dumps(configuration(planned, self.paths.audit)))
            _must(
                [
                    *("kind", "create", "cluster", f"--name={self.kind_name}", f"--config={config}"),
                    *(f"--kubeconfig={self.kubeconfig}", "--wait=180s"),
                ]
            )
            self._kubectl(
                ["taint", "nodes", "--all", "node-role.kubernetes.io/control-plane-", "--overwrite"], check=False
            )
            names = self._node_names()
            for one, name in zip(planned, names, strict=True):
                if one.tpu_chips:
                    patch = json.dumps({"status": {"capacity": {"google.com/tpu": str(one.tpu_chips)}}})
                    self._kubectl(["patch", "node", name, "--subresource=status", "--type=merge", "-p", patch])
            self._kubectl(["apply", "--server-side", "-k", str(built.folder(KUBERNETES) / "jobset-config" / "default")])
            self._start_bucket(built, shape)
            waiting.until(self._jobset_ready, "JobSet's webhook", timeout=_TIMEOUT, interval=1)
            report(f"the cluster {self.name} is up ({time.monotonic() - started:.0f} s)")

    def down(self, report: Report) -> None:
        """Delete it, the storage server and the files."""
        with locks.locked(self.paths.lock):
            self._remove()
        report(f"the cluster {self.name} is gone")

    def status(self) -> Status:
        """Whether kind knows it."""
        answer = subprocess.run(["kind", "get", "clusters"], capture_output=True, text=True)
        file = self.paths.description
        running = self.kind_name in answer.stdout.split() and file.is_file()
        if not running:
            return Status("kind", running=False)
        value = self._read()
        shape = Shape(int(str(value["nodes"])), tuple(poses.parse(text) for text in json.loads(str(value["poses"]))))
        return Status("kind", running=True, shape=shape)

    def build(self, target: str, context: Path, report: Report) -> Image:
        """Build a target with Docker, which keeps the image."""
        name = images.image_name(target, dockerfile.key(context, target))
        if subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode != 0:
            report(f"building {name}")
            _must(["docker", "build", f"--target={target}", f"--tag={name}", str(context)])
        return Image(name)

    def load(self, image: Image, report: Report) -> None:
        """Copy an image to every node."""
        if image.archive is not None:
            _must(["kind", "load", "image-archive", f"--name={self.kind_name}", str(image.archive)])
        else:
            _must(["kind", "load", "docker-image", f"--name={self.kind_name}", image.name])
        report(f"{self.name} has {image.name}")

    def calls(self) -> frozenset[audit.Call]:
        """What service accounts have asked of the API server since the cluster came up."""
        return audit.read(self.paths.audit)

    def pause_kubelet(self, node: str) -> None:
        """Stop a kubelet's process."""
        _must(["docker", "exec", node, "systemctl", "kill", "--signal=SIGSTOP", "kubelet"])

    def resume_kubelet(self, node: str) -> None:
        """Let it go on."""
        _must(["docker", "exec", node, "systemctl", "kill", "--signal=SIGCONT", "kubelet"])

    def pause_jobset(self) -> None:
        """Take the JobSet controller's pod away."""
        self._kubectl([*_JOBSET, "--replicas=0"])

    def resume_jobset(self) -> None:
        """Let it run again."""
        self._kubectl([*_JOBSET, "--replicas=1"])

    def command(self, argv: Sequence[str]) -> list[str]:
        """A command with the network of the control plane's container, so that it reaches pods."""
        pid = _must(["docker", "inspect", "--format={{.State.Pid}}", f"{self.kind_name}-control-plane"]).strip()
        return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with `KUBECONFIG` set; its exit code is the caller's to judge."""
        return subprocess.run(
            self.command(argv),
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), **(env or {})},
        )

    def _read(self) -> dict[str, object]:
        if not self.paths.description.is_file():
            raise errors.NotRunningError(
                f"The cluster {self.name} isn't up; start it with `ldj cluster up --name {self.name}`."
            )
        value: dict[str, object] = json.loads(self.paths.description.read_text())
        return value

    def _remove(self) -> None:
        _must(["kind", "delete", "cluster", f"--name={self.kind_name}"])
        root = f"-filesystem-root={self.paths.root / 'bucket'}"
        namespace.kill_all(lambda: namespace.processes_with([root]), f"the storage server of {self.name}")
        if self.paths.root.exists():
            shutil.rmtree(self.paths.root)

    def _start_bucket(self, built: tools.Tools, shape: Shape) -> None:
        gateway = _must(
            ["docker", "network", "inspect", "kind", "--format={{range .IPAM.Config}}{{.Gateway}} {{end}}"]
        ).split()
        ipv4 = next(address for address in gateway if ":" not in address)
        (port,) = namespace.free_ports(1)
        # No image of it is at hand, so it is a process of this machine; `down` finds it by its folder.
        program = built.program(FAKE_GCS_SERVER, "fake-gcs-server")
        with (self.paths.logs / "bucket.log").open("wb") as sink:
            subprocess.Popen(
                [
                    *(program, "-scheme=http", "-host=0.0.0.0", f"-port={port}", "-backend=filesystem"),
                    *(f"-filesystem-root={self.paths.root / 'bucket'}", "-log-level=warn"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        state.write_json(
            self.paths.description,
            {
                "bucketPort": port,
                "gateway": ipv4,
                "nodes": shape.nodes,
                "poses": json.dumps([f"{pose.machine_type}={pose.topology}" for pose in shape.poses]),
            },
        )

    def _node_names(self) -> list[str]:
        names = _must(["kind", "get", "nodes", f"--name={self.kind_name}"]).split()
        return sorted(names, key=lambda name: (not name.endswith("control-plane"), len(name), name))

    def _jobset_ready(self) -> bool:
        answer = self._kubectl(
            ["create", "--dry-run=server", "-o", "json", "-f", "-"], json.dumps(jobset.PROBE), check=False
        )
        return jobset.answered(answer)

    def _kubectl(self, argv: Sequence[str], input: str | None = None, *, check: bool = True) -> str:
        return _must([str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *argv], input, check=check)


def _must(argv: Sequence[str], input: str | None = None, *, check: bool = True) -> str:
    answer = subprocess.run(argv, input=input, capture_output=True, text=True)
    if check and answer.returncode != 0:
        raise errors.CommandError(f"`{' '.join(argv[:4])} …` failed: {answer.stderr.strip()[-1500:]}")
    return answer.stdout
