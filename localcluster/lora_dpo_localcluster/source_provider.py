"""A cluster of this machine's own processes, in namespaces of their own: no Docker, no registry."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_dpo_localcluster import (
    audit,
    bucket,
    cgroups,
    controlplane,
    debian,
    dns,
    errors,
    images,
    jobset,
    locks,
    namespace,
    node,
    pki,
    poses,
    state,
    tools,
    waiting,
)
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.processes import Processes
from lora_dpo_localcluster.provider import Shape, Status
from lora_dpo_localcluster.tools import Report

_START_TIMEOUT = 180


@dataclasses.dataclass(frozen=True, slots=True)
class _Description:
    """What a running cluster was started with."""

    api_port: int
    bucket_port: int
    shape: Shape
    tools: tools.Tools
    complete: bool

    def to_json(self) -> dict[str, object]:
        return {
            "apiPort": self.api_port,
            "bucketPort": self.bucket_port,
            "nodes": self.shape.nodes,
            "poses": [f"{pose.machine_type}={pose.topology}" for pose in self.shape.poses],
            "tools": {name: str(folder) for name, folder in self.tools.folders},
            "complete": self.complete,
        }

    @classmethod
    def read(cls, file: Path) -> _Description:
        value = json.loads(file.read_text())
        return cls(
            api_port=value["apiPort"],
            bucket_port=value["bucketPort"],
            shape=Shape(value["nodes"], tuple(poses.parse(text) for text in value["poses"])),
            tools=tools.Tools(tuple((name, Path(folder)) for name, folder in value["tools"].items())),
            complete=value["complete"],
        )


@dataclasses.dataclass(frozen=True, slots=True)
class SourceCluster:
    """See `provider.Cluster`."""

    paths: state.ClusterPaths

    @property
    def name(self) -> str:
        """Its name."""
        return self.paths.name

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; valid on this machine and in the cluster's network namespace."""
        return self.paths.kubeconfig

    @property
    def kubectl(self) -> Path:
        """The kubectl built with the cluster."""
        return self._description().tools.kubectl

    @property
    def bucket(self) -> bucket.BucketServer:
        """The cluster's storage server."""
        return bucket.server(self._description().bucket_port)

    @property
    def processes(self) -> Processes:
        """The cluster's programs, to look at and to kill.

        Raises:
            NotRunningError: the cluster isn't up.
        """
        found = namespace.find(self.paths)
        if found is None:
            raise errors.NotRunningError(
                f"The cluster {self.name} isn't up; start it with `ldj cluster up --name {self.name}`."
            )
        return Processes(self.paths, found)

    def up(self, shape: Shape, report: Report) -> None:
        """Start the cluster; what a start that was cut off left is removed first."""
        debian.require_root()
        planned = poses.plan_nodes(shape.nodes, shape.poses)
        debian.ensure_for_cluster(report)
        built = tools.ensure(report)
        with locks.locked(self.paths.lock):
            if self._is_up():
                running = self._description().shape
                if running != shape:
                    raise errors.LocalClusterError(
                        f"The cluster {self.name} is up with {running}, not {shape}; "
                        f"run `ldj cluster down --name {self.name}` first, or choose another --name."
                    )
                report(f"the cluster {self.name} is up already")
                return
            self._remove()
            self._start(_new_description(shape, built), planned, report)

    def down(self, report: Report) -> None:
        """End every process of the cluster and remove its files."""
        with locks.locked(self.paths.lock):
            if not self.paths.root.exists() and namespace.find(self.paths) is None:
                report(f"no cluster {self.name}")
                return
            self._remove()
        report(f"the cluster {self.name} is gone")

    def status(self) -> Status:
        """Which programs run."""
        found = namespace.find(self.paths)
        if found is None or not self.paths.description.is_file():
            return Status("source", running=False)
        processes = Processes(self.paths, found)
        alive = tuple((name, processes.alive(name)) for name in processes.names())
        description = self._description()
        return Status("source", running=description.complete, processes=alive, shape=description.shape)

    def build(self, target: str, context: Path, report: Report) -> Image:
        """Build a target of the Dockerfile with BuildKit."""
        return images.build(target, context, report)

    def load(self, image: Image, report: Report) -> None:
        """Import an image into every node that lacks it."""
        description, processes = self._description(), self.processes
        with locks.locked(self.paths.lock):
            for one in poses.plan_nodes(description.shape.nodes, description.shape.poses):
                if image.name in self._images(one, processes, description.tools):
                    continue
                started = time.monotonic()
                node.import_image(one, processes, description.tools, image)
                report(f"{one.name} has {image.name} ({time.monotonic() - started:.1f} s)")

    def calls(self) -> frozenset[audit.Call]:
        """What service accounts have asked of the API server since the cluster came up."""
        return audit.read(self.paths.audit)

    def pause_kubelet(self, node: str) -> None:
        """Stop a kubelet's process."""
        self.processes.kill(f"kubelet-{node}", signal.SIGSTOP)

    def resume_kubelet(self, node: str) -> None:
        """Let it go on."""
        self.processes.kill(f"kubelet-{node}", signal.SIGCONT)

    def pause_jobset(self) -> None:
        """Stop the JobSet controller's process."""
        self.processes.kill("jobset", signal.SIGSTOP)

    def resume_jobset(self) -> None:
        """Let it go on."""
        self.processes.kill("jobset", signal.SIGCONT)

    def command(self, argv: Sequence[str]) -> list[str]:
        """A command with the cluster's network and this machine's files."""
        return self.processes.namespace.network_command(argv)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with the cluster's network and `KUBECONFIG` set; its exit code is the caller's to judge."""
        return subprocess.run(
            self.command(argv),
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), **(env or {})},
        )

    def _is_up(self) -> bool:
        if namespace.find(self.paths) is None or not self.paths.description.is_file():
            return False
        return self._description().complete

    def _description(self) -> _Description:
        if not self.paths.description.is_file():
            raise errors.NotRunningError(
                f"The cluster {self.name} isn't up; start it with `ldj cluster up --name {self.name}`."
            )
        return _Description.read(self.paths.description)

    def _remove(self) -> None:
        namespace.end(self.paths)
        cgroups.remove(self.paths.cgroup)
        if self.paths.root.exists():
            shutil.rmtree(self.paths.root)

    def _start(self, description: _Description, planned: Sequence[node.Node], report: Report) -> None:
        started = time.monotonic()
        paths, built = self.paths, description.tools
        paths.root.mkdir(parents=True)
        state.write_json(paths.description, description.to_json())
        made = namespace.start(paths, (description.api_port, description.bucket_port))
        processes = Processes(paths, made)
        cgroups.create(paths.cgroup, [one.name for one in planned])
        authority = pki.Authority.create(paths.pki)
        controlplane.write_credentials(processes, authority, description.api_port)
        controlplane.start_api_server(processes, built, description.api_port)
        node.add_addresses(planned, processes)
        for one in planned:
            node.start_containerd(one, processes, built)
        bucket.start(processes, built, description.bucket_port)
        for one in planned:
            node.wait_for_containerd(one, processes, built)
        processes.wait("kube-apiserver", self._api_ready, "the API server", timeout=_START_TIMEOUT)
        report(f"API server ready ({time.monotonic() - started:.1f} s)")
        controlplane.start_controllers(processes, built)
        node.start_proxy(processes, built)
        dns.start(processes, built)
        for one in planned:
            node.start_kubelet(one, processes, built, authority, description.api_port)
        self._start_jobset(processes, built, authority)
        for one in planned:
            ready = functools.partial(self._node_ready, one)
            processes.wait(f"kubelet-{one.name}", ready, f"the node {one.name}", timeout=_START_TIMEOUT)
        report(f"{len(planned)} node{'s' if len(planned) > 1 else ''} ready ({time.monotonic() - started:.1f} s)")
        for one in planned:
            self._pose(one)
        processes.wait("jobset", self._jobset_ready, "JobSet's webhook", timeout=_START_TIMEOUT)
        processes.wait("bucket", self.bucket.answers, "the storage server", timeout=30)
        waiting.until(self._default_account, "the default service account", timeout=60)
        state.write_json(paths.description, dataclasses.replace(description, complete=True).to_json())
        report(f"the cluster {self.name} is up ({time.monotonic() - started:.1f} s)")

    def _start_jobset(self, processes: Processes, built: tools.Tools, authority: pki.Authority) -> None:
        self._apply("-f", str(jobset.crd_folder(built)))
        waiting.until(self._jobsets_served, "the JobSet definition", timeout=60)
        jobset.start(processes, built)
        manifests = jobset.webhook_manifests(
            jobset.webhook_source(built).read_text(), authority.certificate_file.read_bytes()
        )
        self._apply("-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))

    def _pose(self, one: node.Node) -> None:
        if one.tpu_chips:
            patch = {"status": {"capacity": {"google.com/tpu": str(one.tpu_chips)}}}
            self._must(["patch", "node", one.name, "--subresource=status", "--type=merge", "-p", json.dumps(patch)])

    def _kubectl(self, argv: Sequence[str], input: str | None = None) -> subprocess.CompletedProcess[str]:
        return self.run([str(self.kubectl), *argv], input=input, timeout=120)

    def _must(self, argv: Sequence[str], input: str | None = None) -> None:
        answer = self._kubectl(argv, input)
        if answer.returncode != 0:
            raise errors.CommandError(f"kubectl {' '.join(argv)} failed: {answer.stderr.strip()[-1000:]}")

    def _apply(self, *argv: str, input: str | None = None) -> None:
        self._must(["apply", "--server-side", "--force-conflicts", *argv], input)

    def _api_ready(self) -> bool:
        return self._kubectl(["get", "--raw", "/readyz"]).returncode == 0

    def _node_ready(self, one: node.Node) -> bool:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return self._kubectl(["get", "node", one.name, "--ignore-not-found", "-o", path]).stdout.strip() == "True"

    def _jobset_ready(self) -> bool:
        answer = self._kubectl(["create", "--dry-run=server", "-o", "json", "-f", "-"], json.dumps(jobset.PROBE))
        return answer.returncode == 0 and jobset.answered(answer.stdout)

    def _jobsets_served(self) -> bool:
        return self._kubectl(["get", "jobsets"]).returncode == 0

    def _default_account(self) -> bool:
        return self._kubectl(["get", "serviceaccount", "default"]).returncode == 0

    def _images(self, one: node.Node, processes: Processes, built: tools.Tools) -> frozenset[str]:
        answer = subprocess.run(
            node.ctr(one, processes, built, ["image", "list", "--quiet"]), capture_output=True, text=True
        )
        return frozenset(answer.stdout.split())


def _new_description(shape: Shape, built: tools.Tools) -> _Description:
    api_port, bucket_port = namespace.free_ports(2)
    return _Description(api_port, bucket_port, shape, built, complete=False)
