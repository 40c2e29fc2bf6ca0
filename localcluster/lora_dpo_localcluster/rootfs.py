"""The stand-in for `debian:trixie-slim` where no registry is reached: the same packages, from debootstrap."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from lora_dpo_localcluster import errors, locks, oci, state
from lora_dpo_localcluster.tools import Report

IMAGE = "debian:trixie-slim"
_SUITE = "trixie"
_MIRROR = "http://deb.debian.org/debian"
# Python and what it is installed with are here already, so that building an image needn't fetch them each time.
_PACKAGES = ("ca-certificates", "python3", "python3-venv")
# As in the real slim image.
_REMOVED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/lib/apt/lists",
    "var/cache/apt",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Base:
    """The base image as an OCI layout.

    Attributes:
        layout: the folder.
        digest: of its manifest, `sha256:…`.
    """

    layout: Path
    digest: str


def ensure(report: Report) -> Base:
    """The base image from the cache folder, made on the first call.

    Raises:
        BuildError: debootstrap failed.
    """
    key = hashlib.sha256(repr((_SUITE, _PACKAGES, _REMOVED, oci.architecture())).encode()).hexdigest()[:12]
    target = state.cache_folder() / "base" / f"{_SUITE}-{key}"
    with locks.locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            _make(target, report)
    return Base(target / "layout", (target / "digest").read_text().strip())


def _make(target: Path, report: Report) -> None:
    started = time.monotonic()
    report("putting the base image together (once)")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    rootfs = part / "rootfs"
    # A mount namespace of its own: what debootstrap mounts goes away with it, even when it is killed.
    answer = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
            *("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}"),
            *(_SUITE, rootfs, os.environ.get("LDJ_DEBIAN_MIRROR", _MIRROR)),
        ],
        capture_output=True,
        text=True,
    )
    if answer.returncode != 0:
        tail = (answer.stdout + answer.stderr).strip()[-2000:]
        raise errors.BuildError(
            f"debootstrap of {_SUITE} ended with code {answer.returncode}; "
            f"LDJ_DEBIAN_MIRROR names another mirror:\n{tail}"
        )
    for folder in _REMOVED:
        shutil.rmtree(rootfs / folder, ignore_errors=True)
        (rootfs / folder).mkdir(parents=True, exist_ok=True)
    (part / "digest").write_text(oci.write_layout(part / "layout", rootfs, IMAGE))
    shutil.rmtree(rootfs)
    part.rename(target)
    report(f"base image ready ({time.monotonic() - started:.0f} s)")
