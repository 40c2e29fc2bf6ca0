"""The project's images, built by BuildKit from its Dockerfile, without Docker and without a registry."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lora_dpo_localcluster import (
    cgroups,
    debian,
    dockerfile,
    errors,
    locks,
    rootfs,
    settings,
    state,
    store,
    tools,
    waiting,
)
from lora_dpo_localcluster.provider import Image
from lora_dpo_localcluster.tools import BUILDKIT, CONTAINERD, Report, Tools

TARGETS = ("operator", "trainer")
_CGROUP = "ldj-build"
_KEPT = 4


def image_name(target: str, key: str) -> str:
    """An image's name; nothing pulls from `localhost`, so a node either has it or says so."""
    return f"localhost/lora-dpo-{target}:{key}"


def build(target: str, context: Path, report: Report) -> Image:
    """Build a target of the Dockerfile, unless it is there already, and unpack it for the nodes of later clusters.

    Args:
        target: `operator` or `trainer`.
        context: the folder with the Dockerfile.
        report: gets a line for each stage.

    Raises:
        BuildError: the build failed.
        LocalClusterError: there is no Dockerfile with such a target.
    """
    if not (context / "Dockerfile").is_file():
        raise errors.LocalClusterError(f"No Dockerfile in {context}; images are built in a checkout of the project.")
    debian.require_root()
    debian.ensure_for_images(report)
    base = rootfs.ensure(report)
    try:
        key = dockerfile.key(context, target, (base.digest,))
    except KeyError as unknown:
        raise errors.LocalClusterError(
            f"The Dockerfile has no target {unknown}; there are {', '.join(TARGETS)}."
        ) from unknown
    image = Image(image_name(target, key), state.cache_folder() / "images" / f"{target}-{key}.tar")
    assert image.archive is not None
    built = tools.ensure(report, (BUILDKIT, CONTAINERD))
    # One build at a time: two would use the same layers, and the second then finds them.
    with locks.locked(state.cache_folder() / "buildkit.lock"):
        if not image.archive.is_file():
            _build(target, context, base, image.name, image.archive, built, report)
            _prune(image.archive.parent, target)
    store.current().add(image.name, image.archive, built, report)
    return image


def _build(
    target: str, context: Path, base: rootfs.Base, name: str, archive: Path, built: Tools, report: Report
) -> None:
    started = time.monotonic()
    report(f"building the {target} image")
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(".part")
    with tempfile.TemporaryDirectory(prefix="ldj-build-") as scratch, _daemon(Path(scratch), built) as address:
        secrets = settings.write(Path(scratch))
        command = [
            str(built.program(BUILDKIT, "buildctl")),
            f"--addr={address}",
            "build",
            "--progress=plain",
            "--frontend=dockerfile.v0",
            f"--local=context={context}",
            f"--local=dockerfile={context}",
            f"--opt=target={target}",
            f"--opt=cgroup-parent={_CGROUP}",
            f"--oci-layout=base={base.layout}",
            f"--opt=context:{rootfs.IMAGE}=oci-layout://base@{base.digest}",
            # The image stays on this machine: compressing it would take longer than all the rest.
            f"--output=type=docker,name={name},dest={part},compression=uncompressed,force-compression=true",
            *(f"--secret=id={secret},src={file}" for secret, file in secrets.items()),
            *_proxies(),
        ]
        answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise errors.BuildError(f"The {target} image doesn't build:\n{answer.stderr.strip()[-4000:]}")
    part.rename(archive)
    size = archive.stat().st_size / 1e6
    report(f"built {name}, {size:.0f} MB ({time.monotonic() - started:.0f} s)")


@contextlib.contextmanager
def _daemon(scratch: Path, built: Tools) -> Iterator[str]:
    """A BuildKit daemon that lives as long as the build, with process and mount namespaces of its own."""
    address = f"unix://{scratch / 'buildkitd.sock'}"
    log = scratch / "buildkitd.log"
    root = state.cache_folder() / "buildkit"
    root.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
                str(built.program(BUILDKIT, "buildkitd")),
                f"--addr={address}",
                f"--root={root}",
                "--oci-worker-net=host",
                "--oci-worker-binary=runc",
                "--oci-worker-snapshotter=overlayfs",
                "--oci-worker-gc=true",
                "--oci-worker-gc-keepstorage=12000",
            ],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        command = [str(built.program(BUILDKIT, "buildctl")), f"--addr={address}", "debug", "workers"]
        waiting.until(
            lambda: subprocess.run(command, capture_output=True).returncode == 0,
            "BuildKit",
            timeout=60,
            log=log,
            alive=lambda: process.poll() is None,
        )
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        cgroups.remove(_CGROUP)


def _proxies() -> list[str]:
    names = ("http_proxy", "https_proxy", "no_proxy")
    found = ((name, os.environ.get(name) or os.environ.get(name.upper())) for name in names)
    return [f"--opt=build-arg:{name}={value}" for name, value in found if value]


def _prune(folder: Path, target: str) -> None:
    """Keep the newest archives of a target: each is as large as the image."""
    archives = sorted(folder.glob(f"{target}-*.tar"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in archives[_KEPT:]:
        old.unlink(missing_ok=True)
    for part in folder.glob(f"{target}-*.part"):
        part.unlink(missing_ok=True)


def clear() -> None:
    """Forget every image and what they were made from."""
    for name in ("images", "store", "buildkit", "base"):
        shutil.rmtree(state.cache_folder() / name, ignore_errors=True)
