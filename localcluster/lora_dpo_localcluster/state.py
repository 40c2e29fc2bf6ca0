"""Where things lie: the user's cache folder (tools, images) and one state folder for each cluster.

Everything that belongs to a cluster is named after it, so that clusters side by side don't meet.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from lora_dpo_localcluster import errors

APPLICATION = "lora-dpo-operator"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?")


def cache_folder() -> Path:
    """The folder for what can be made again: built programs, the base root file system, images.

    `LDJ_CACHE` overrides it; else `$XDG_CACHE_HOME` or `~/.cache`.
    """
    if override := os.environ.get("LDJ_CACHE"):
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / APPLICATION


def clusters_folder() -> Path:
    """The folder with one folder for each cluster.

    `LDJ_STATE` overrides it; else `$XDG_STATE_HOME` or `~/.local/state`.
    """
    if override := os.environ.get("LDJ_STATE"):
        return Path(override)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / APPLICATION / "clusters"


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterPaths:
    """The names and folders of one cluster."""

    name: str
    root: Path

    @property
    def lock(self) -> Path:
        """The lock that `up` and `down` take; beside the folder, which `down` removes."""
        return self.root.with_name(f"{self.name}.lock")

    @property
    def logs(self) -> Path:
        """One file for each process of the cluster."""
        return self.root / "logs"

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.root / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; works on this machine and inside the cluster's network namespace."""
        return self.root / "kubeconfig"

    @property
    def pids(self) -> Path:
        """One file for each process, with its number inside the cluster's process namespace."""
        return self.root / "pids"

    @property
    def description(self) -> Path:
        """What the cluster was started with, as JSON."""
        return self.root / "cluster.json"

    @property
    def audit(self) -> Path:
        """What the API server logs of its callers, and by which policy."""
        return self.root / "audit"

    @property
    def cgroup(self) -> str:
        """The control group of the cluster's containers, from the root of each hierarchy."""
        return f"/ldj-{self.name}"


def cluster_paths(name: str) -> ClusterPaths:
    """The paths of the cluster of this name.

    Raises:
        InvalidNameError: the name isn't a short DNS label.
    """
    if not _NAME.fullmatch(name):
        raise errors.InvalidNameError(
            f"{name!r} can't name a cluster: use 1 to 24 lower-case letters, digits and '-', "
            "with a letter or digit at both ends."
        )
    return ClusterPaths(name=name, root=clusters_folder() / name)


def existing_clusters() -> tuple[str, ...]:
    """The names of the clusters with a state folder, in order."""
    folder = clusters_folder()
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _NAME.fullmatch(entry.name)))


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, sort_keys=True))
    part.replace(path)
