"""Builds the cluster's programs from Go modules, once, into the user's cache folder.

Each folder of `go/` is a module whose `tool` lines name the programs, so `go build tool` builds them and go.sum
authenticates every source. A build lands under a name made of everything that decides its content, so a changed
version never meets an old program; it becomes visible by one rename, so a build killed half-way is never used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lora_dpo_localcluster import errors, golang, locks, state

type Report = Callable[[str], None]

KUBERNETES_VERSION = "1.36.3"
# Without these the servers call themselves v0.0.0 and clients fail to read the version.
_LDFLAGS = (
    "-s -w"
    f" -X k8s.io/component-base/version.gitVersion=v{KUBERNETES_VERSION}"
    f" -X k8s.io/component-base/version.gitMajor={KUBERNETES_VERSION.split('.')[0]}"
    f" -X k8s.io/component-base/version.gitMinor={KUBERNETES_VERSION.split('.')[1]}"
)
_FLAGS = ("-trimpath", "-ldflags", _LDFLAGS)


@dataclasses.dataclass(frozen=True, slots=True)
class Copied:
    """A folder of a dependency that is kept beside the programs, so that the module cache isn't needed later."""

    module: str
    source: str
    target: str


@dataclasses.dataclass(frozen=True, slots=True)
class Module:
    """One folder of `go/`: what it builds and which data it brings along."""

    name: str
    programs: tuple[str, ...]
    copied: tuple[Copied, ...] = ()


KUBERNETES = Module(
    name="kubernetes",
    # etcd's main package is called "server".
    programs=(
        "server",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "kubectl",
        "jobset",
        "kwok",
    ),
    copied=(Copied("sigs.k8s.io/jobset", "config", "jobset-config"),),
)
CONTAINERD = Module("containerd", ("containerd", "containerd-shim-runc-v2", "ctr"))
COREDNS = Module("coredns", ("coredns",))
BUILDKIT = Module("buildkit", ("buildkitd", "buildctl"))
FAKE_GCS_SERVER = Module("fake-gcs-server", ("fake-gcs-server",))
HELM = Module("helm", ("helm",))
"""Not part of a cluster, and so not of `MODULES`: for those who install charts."""
MONITORING = Module(
    "monitoring",
    programs=(),
    copied=(
        Copied("github.com/prometheus-operator/prometheus-operator", "example/prometheus-operator-crd", "coreos"),
        Copied("github.com/GoogleCloudPlatform/prometheus-engine", "charts/operator/crds", "google"),
    ),
)
"""No program, only the definitions of monitors and rules: for those who want to know whether theirs are valid."""
CERT_MANAGER = Module(
    "cert-manager",
    programs=(),
    copied=(Copied("github.com/cert-manager/cert-manager", "deploy/crds", "definitions"),),
)
"""As above: the definitions of issuers and certificates, as templates of its chart that are YAML all the same."""
KUEUE = Module("kueue", ("kueue",), copied=(Copied("sigs.k8s.io/kueue", "config", "kueue-config"),))
"""Not part of a cluster either: for those who want queues in theirs."""
KUBEFLOW_TRAINER = Module(
    "kubeflow-trainer",
    ("trainer-controller-manager",),
    copied=(Copied("github.com/kubeflow/trainer/v2", "manifests", "trainer-manifests"),),
)
"""The peer that the operator is measured beside."""
MODULES = (KUBERNETES, CONTAINERD, COREDNS, BUILDKIT, FAKE_GCS_SERVER)


@dataclasses.dataclass(frozen=True, slots=True)
class Tools:
    """The built programs."""

    folders: tuple[tuple[str, Path], ...]

    def folder(self, module: Module) -> Path:
        """The folder with a module's programs and data."""
        return dict(self.folders)[module.name]

    def program(self, module: Module, name: str) -> Path:
        """The path of one program."""
        return self.folder(module) / name

    @property
    def kubectl(self) -> Path:
        """The kubectl of the cluster's own version."""
        return self.program(KUBERNETES, "kubectl")


def ensure(report: Report, modules: tuple[Module, ...] = MODULES) -> Tools:
    """Build what is missing and return where everything lies.

    Args:
        report: gets a line for each stage of a build.
        modules: what is needed.

    Raises:
        BuildError: a module doesn't build; the message ends with Go's own.
        MissingProgramError: there is no Go and none can be installed.
    """
    return Tools(tuple((module.name, _ensure(module, report)) for module in modules))


def key(module: Module) -> str:
    """The hash of everything that decides what a module builds."""
    source = _source(module)
    digest = hashlib.sha256()
    for part in (
        (source / "go.mod").read_bytes(),
        (source / "go.sum").read_bytes(),
        "\0".join(_FLAGS).encode(),
        repr(module).encode(),
        os.uname().machine.encode(),
    ):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def built_folder(module: Module) -> Path:
    """Where a module's programs lie once built."""
    return state.cache_folder() / "tools" / f"{module.name}-{key(module)}"


def _source(module: Module) -> Path:
    # Package data of an installed wheel are plain files; Go needs a folder, not a resource handle.
    return Path(str(importlib.resources.files("lora_dpo_localcluster"))) / "go" / module.name


def _ensure(module: Module, report: Report) -> Path:
    target = built_folder(module)
    if target.is_dir():
        return target
    with locks.locked(target.with_name(f"{target.name}.lock")):
        if target.is_dir():
            return target
        started = time.monotonic()
        report(f"building {module.name} (once; minutes on a machine with empty caches)")
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        (part / "module").mkdir(parents=True)
        for name in ("go.mod", "go.sum"):
            shutil.copyfile(_source(module) / name, part / "module" / name)
        if module.programs:
            _build(module, part, report)
        for copied in module.copied:
            _copy(copied, part)
        shutil.rmtree(part / "module")
        part.rename(target)
        report(f"built {module.name} in {time.monotonic() - started:.0f} s")
    return target


def _build(module: Module, part: Path, report: Report) -> None:
    go = golang.go_program()
    command = [str(go), "build", "-mod=readonly", *_FLAGS, "-o", f"{part}/", "tool"]
    with subprocess.Popen(
        command,
        cwd=part / "module",
        env=golang.local_toolchain(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines: list[str] = []
        done = threading.Event()
        ticker = threading.Thread(target=_tick, args=(module, report, done), daemon=True)
        ticker.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                if line.startswith("go: downloading") and len(lines) % 50 == 0:
                    report(f"building {module.name}: {len(lines)} modules fetched")
        finally:
            done.set()
    if process.returncode != 0:
        tail = "\n".join(line for line in lines if not line.startswith("go: downloading"))[-3000:]
        raise errors.BuildError(f"`go build` of {module.name} ended with code {process.returncode}:\n{tail}")
    missing = [program for program in module.programs if not (part / program).is_file()]
    if missing:
        raise errors.BuildError(f"The module {module.name} built no {', '.join(missing)}; see its go.mod's tool lines.")


def _tick(module: Module, report: Report, done: threading.Event) -> None:
    # A cold build of Kubernetes is silent for minutes.
    started = time.monotonic()
    while not done.wait(30):
        report(f"building {module.name}: {time.monotonic() - started:.0f} s so far")


def _copy(copied: Copied, part: Path) -> None:
    answer = subprocess.run(
        [golang.go_program(), "mod", "download", "-json", copied.module],
        cwd=part / "module",
        env=golang.local_toolchain(),
        capture_output=True,
        text=True,
    )
    if answer.returncode != 0:
        said = (answer.stdout + answer.stderr).strip()[-1000:]
        raise errors.BuildError(f"`go mod download {copied.module}` failed: {said}")
    target = part / copied.target
    shutil.copytree(Path(json.loads(answer.stdout)["Dir"]) / copied.source, target)
    # The module cache is read-only; what we keep must be removable.
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
