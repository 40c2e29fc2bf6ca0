"""What a local cluster can do, whatever it is made of."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lora_dpo_localcluster.audit import Call
from lora_dpo_localcluster.bucket import BucketServer
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.poses import Pose
from lora_dpo_localcluster.tools import Report


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster is made of.

    Attributes:
        nodes: ordinary nodes.
        poses: slices whose hosts are posed, in addition.
    """

    nodes: int = 1
    poses: tuple[Pose, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """A cluster as it is now.

    Attributes:
        provider: `source` or `kind`.
        running: whether it is up.
        processes: name and whether it runs, of each program that was started.
        shape: what it was started with; None when it isn't up.
    """

    provider: str
    running: bool
    processes: tuple[tuple[str, bool], ...] = ()
    shape: Shape | None = None


class Cluster(Protocol):
    """A Kubernetes cluster on this machine, with the JobSet controller and a bucket."""

    @property
    def name(self) -> str:
        """Its name; several live side by side."""
        ...

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        ...

    @property
    def kubectl(self) -> Path:
        """A kubectl that fits the cluster."""
        ...

    @property
    def bucket(self) -> BucketServer:
        """The cluster's storage server."""
        ...

    def up(self, shape: Shape, report: Report) -> None:
        """Start it and wait until pods and JobSets run; one that is up already stays, if it has this shape."""
        ...

    def down(self, report: Report) -> None:
        """Remove it with everything that it made; nothing to do is fine."""
        ...

    def status(self) -> Status:
        """What it is like now."""
        ...

    def build(self, target: str, context: Path, report: Report) -> Image:
        """Build a target of the Dockerfile in `context`; an unchanged one isn't built again."""
        ...

    def load(self, image: Image, report: Report) -> None:
        """Give every node an image; one that is there isn't copied again."""
        ...

    def calls(self) -> frozenset[Call]:
        """What service accounts have asked of the API server since the cluster came up."""
        ...

    def pause_kubelet(self, node: str) -> None:
        """Let a node's kubelet do nothing: the node is as good as gone, and its containers run on."""
        ...

    def resume_kubelet(self, node: str) -> None:
        """Let it go on."""
        ...

    def pause_jobset(self) -> None:
        """Let the JobSet controller do nothing, and its webhooks not answer."""
        ...

    def resume_jobset(self) -> None:
        """Let it go on."""
        ...

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` on this machine where it reaches pods by their addresses."""
        ...

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` to its end as `command` says, with `KUBECONFIG` set."""
        ...
