"""Packages of the distribution that a node needs: installed on Debian and Ubuntu as root, else named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lora_dpo_localcluster import errors
from lora_dpo_localcluster.tools import Report

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What to look for, and the package that has it.
_CLUSTER = (
    ("runc", "runc"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
)
_BUILD = (("debootstrap", "debootstrap"),)
_BROWSER = (("chromium-headless-shell", "chromium-headless-shell"),)
_PROMETHEUS = (("prometheus", "prometheus"), ("promtool", "prometheus"))


def ensure_for_cluster(report: Report) -> None:
    """See to it that a node's programs are there.

    Raises:
        MissingProgramError: some are missing and can't be installed here.
    """
    _ensure(_CLUSTER, report)


def ensure_for_images(report: Report) -> None:
    """See to it that the programs for building images are there.

    Raises:
        MissingProgramError: some are missing and can't be installed here.
    """
    _ensure((*_CLUSTER, *_BUILD), report)


def ensure_for_prometheus(report: Report) -> None:
    """See to it that Prometheus and promtool are there.

    Raises:
        MissingProgramError: they are missing and can't be installed here.
    """
    _ensure(_PROMETHEUS, report)


def ensure_for_browser(report: Report) -> str:
    """See to it that a headless Chromium is there.

    Returns:
        Its path.

    Raises:
        MissingProgramError: it is missing and can't be installed here.
    """
    _ensure(_BROWSER, report)
    return str(shutil.which(_BROWSER[0][0], path=_PATH))


def require_root() -> None:
    """Refuse to go on without root.

    Raises:
        MissingProgramError: the process isn't root.
    """
    if os.geteuid() != 0:
        raise errors.MissingProgramError(
            "Without Docker the cluster is made of this machine's own namespaces, which takes root. "
            "Run it as root, or start Docker and `kind` is used instead."
        )


def missing(wanted: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The packages whose programs aren't there."""
    return tuple(package for program, package in wanted if not _found(program))


def _found(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program, path=_PATH) is not None


def _ensure(wanted: Iterable[tuple[str, str]], report: Report) -> None:
    wanted = tuple(wanted)
    packages = missing(wanted)
    if not packages:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise errors.MissingProgramError(
            f"These packages are missing: {' '.join(packages)}. Install them and try again."
        )
    report(f"installing {' '.join(packages)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages]
    answer = subprocess.run(install, capture_output=True, text=True, env=env)
    if answer.returncode != 0:
        # Most often the package lists are old or absent.
        subprocess.run(["apt-get", "update", "--quiet"], capture_output=True, env=env)
        answer = subprocess.run(install, capture_output=True, text=True, env=env)
    left = missing(wanted)
    if left:
        raise errors.MissingProgramError(
            f"These packages are missing and apt-get couldn't install them: {' '.join(left)}.\n"
            f"{answer.stderr.strip()[-1000:]}"
        )
