"""The project's images, built by BuildKit from its Dockerfile, without Docker and without a registry."""

from __future__ import annotations

import contextlib
import json
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
    oci,
    rootfs,
    settings,
    state,
    store,
    tools,
    waiting,
)
from lora_dpo_localcluster.image import Image
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
    name = image_name(target, key)
    built = tools.ensure(report, (BUILDKIT, CONTAINERD))
    folder = state.cache_folder() / "images"
    layout, record = folder / "layout", folder / f"{target}-{key}.digest"
    # One build at a time: two would use the same layers, and the second then finds them.
    with locks.locked(state.cache_folder() / "buildkit.lock"):
        if not record.is_file():
            digest = _build(target, context, base, name, layout, built, report)
            part = record.with_suffix(".part")
            part.write_text(digest)
            part.rename(record)
            _prune(folder)
        image = Image(name, layout=layout, digest=record.read_text())
        store.current().add(image, built, report)
    return image


def _build(target: str, context: Path, base: rootfs.Base, name: str, layout: Path, built: Tools, report: Report) -> str:
    started = time.monotonic()
    report(f"building the {target} image")
    layout.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ldj-build-") as scratch, _daemon(Path(scratch), built) as address:
        secrets = settings.write(Path(scratch))
        metadata = Path(scratch) / "metadata.json"
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
            # A layout, so that layers which are there aren't written again; uncompressed, since they stay on this
            # machine and compressing them would take longer than all the rest.
            f"--output=type=oci,name={name},dest={layout},tar=false,compression=uncompressed,force-compression=true",
            f"--metadata-file={metadata}",
            *(f"--secret=id={secret},src={file}" for secret, file in secrets.items()),
            *_proxies(),
        ]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode != 0:
            raise errors.BuildError(f"The {target} image doesn't build:\n{answer.stderr.strip()[-4000:]}")
        digest = str(json.loads(metadata.read_text())["containerimage.digest"])
    report(f"built {name} ({time.monotonic() - started:.0f} s)")
    return digest


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


def _prune(folder: Path) -> None:
    """Keep the newest images of each target, and of the layout what they consist of."""
    kept: set[str] = set()
    for target in TARGETS:
        records = sorted(folder.glob(f"{target}-*.digest"), key=lambda file: file.stat().st_mtime, reverse=True)
        for record in records[_KEPT:]:
            record.unlink()
        for record in records[:_KEPT]:
            kept |= set(oci.blobs(folder / "layout", record.read_text()))
    for blob in (folder / "layout" / "blobs" / "sha256").iterdir():
        if f"sha256:{blob.name}" not in kept:
            blob.unlink()


def clear() -> None:
    """Forget every image and what they were made from."""
    for name in ("images", "store", "buildkit", "base"):
        shutil.rmtree(state.cache_folder() / name, ignore_errors=True)
