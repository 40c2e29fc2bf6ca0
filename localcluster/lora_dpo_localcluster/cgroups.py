"""The control groups of a cluster's containers: one folder in each hierarchy, removed with the cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from lora_dpo_localcluster import errors

_ROOT = Path("/sys/fs/cgroup")


def hierarchies() -> tuple[Path, ...]:
    """Where control groups are mounted: one place with version 2, one for each controller with version 1."""
    if (_ROOT / "cgroup.controllers").is_file():
        return (_ROOT,)
    return tuple(sorted({entry.resolve() for entry in _ROOT.iterdir() if entry.is_dir()}))


def create(group: str, children: Sequence[str]) -> None:
    """Make a cluster's group with one below it for each node."""
    for hierarchy in hierarchies():
        base = hierarchy / group.strip("/")
        for child in children:
            (base / child).mkdir(parents=True, exist_ok=True)
            if hierarchy.name == "cpuset":
                _inherit_cpuset(base)
                _inherit_cpuset(base / child)
        if hierarchy == _ROOT:
            _delegate(base)


def remove(group: str, *, timeout: float = 10) -> None:
    """Remove a cluster's group; its processes must have ended.

    Raises:
        NotReadyError: a group stays busy.
    """
    for hierarchy in hierarchies():
        base = hierarchy / group.strip("/")
        deadline = time.monotonic() + timeout
        while base.is_dir():
            # A group of the kernel empties a moment after its last process has ended.
            for folder, _, _ in os.walk(base, topdown=False):
                try:
                    Path(folder).rmdir()
                except OSError as busy:
                    if time.monotonic() > deadline:
                        raise errors.NotReadyError(f"The control group {folder} stays busy: {busy}") from busy
            time.sleep(0.02)


def _inherit_cpuset(folder: Path) -> None:
    # Version 1 refuses processes in a group whose sets are empty.
    for name in ("cpuset.cpus", "cpuset.mems"):
        own = folder / name
        if not own.read_text().strip():
            own.write_text((folder.parent / name).read_text())


def _delegate(base: Path) -> None:
    controllers = " ".join(f"+{name}" for name in (base / "cgroup.controllers").read_text().split())
    (base / "cgroup.subtree_control").write_text(controllers)
