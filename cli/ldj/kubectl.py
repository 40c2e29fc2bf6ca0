"""kubectl and the cluster's objects, as the command line needs them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ldj.errors import KubectlError
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_localcluster.provider import Cluster


@dataclasses.dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl on one cluster.

    Attributes:
        cluster: where it runs.
        namespace: of the objects that have one.
    """

    cluster: Cluster
    namespace: str = "default"

    def text(self, argv: Sequence[str], *, input: str | None = None, timeout: float = 60) -> str:
        """Run kubectl and return what it prints.

        Raises:
            KubectlError: it ended with an error, or not within `timeout` seconds.
        """
        command = [str(self.cluster.kubectl), "--namespace", self.namespace, *argv]
        try:
            answer = self.cluster.run(command, input=input, timeout=timeout)
        except subprocess.TimeoutExpired as late:
            raise KubectlError(f"`kubectl {' '.join(argv)}` didn't end within {timeout:.0f} s") from late
        if answer.returncode != 0:
            raise KubectlError(f"`kubectl {' '.join(argv)}` failed: {answer.stderr.strip()[-2000:]}")
        return answer.stdout

    def apply(self, *files: Path) -> str:
        """Apply manifests, as a user does."""
        return self.text(["apply", *(part for file in files for part in ("--filename", str(file)))])

    def apply_objects(self, manifests: Iterable[dict[str, Any]]) -> str:
        """Apply manifests that aren't in a file, in this order."""
        together = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self.text(["apply", "--filename", "-"], input=json.dumps(together))

    def objects(self, *argv: str) -> list[dict[str, Any]]:
        """The objects that `kubectl get ARGV` finds."""
        items: list[dict[str, Any]] = json.loads(self.text(["get", *argv, "--output", "json"])).get("items", [])
        return items

    def job(self, name: str) -> LoraDpoJob:
        """Read a LoraDpoJob."""
        return LoraDpoJob.from_body(json.loads(self.text(["get", "loradpojob", name, "--output", "json"])))
