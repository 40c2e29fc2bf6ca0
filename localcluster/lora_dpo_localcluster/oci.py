"""Image archives and layouts made by hand, for images that no registry serves."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable
from pathlib import Path

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OMITTED = ("proc/", "sys/", "dev/", "run/", "tmp/", "var/cache/apt/", "var/lib/apt/lists/", "var/log/")


def architecture() -> str:
    """This machine's architecture, as images name it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def write_archive(target: Path, name: str, files: Iterable[tuple[str, bytes]], entrypoint: list[str]) -> None:
    """Write a Docker archive with one layer.

    Args:
        target: the archive.
        name: the image's name and tag.
        files: path and content; executable.
        entrypoint: the image's command.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for path, content in files:
            _add(layer, path, content, 0o755)
    content = buffer.getvalue()
    config = json.dumps(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": entrypoint, "Env": [_PATH]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(content)}"]},
        }
    ).encode()
    config_name = f"{_digest(config)}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(target, "w") as archive:
        for path, part in ((config_name, config), ("layer.tar", content), ("manifest.json", manifest)):
            _add(archive, path, part, 0o644)


def write_layout(target: Path, rootfs: Path, name: str) -> str:
    """Write a root file system as an OCI layout with one uncompressed layer.

    Args:
        target: a new folder.
        rootfs: the file system; device nodes, caches and what the kernel mounts are left out.
        name: the reference in the layout.

    Returns:
        The manifest's digest, `sha256:…`.
    """
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = target / "layer.tar"
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(rootfs, arcname=".", filter=_kept)
    with layer.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    size = layer.stat().st_size
    layer.rename(blobs / digest)
    config = _blob(
        blobs,
        {
            "architecture": architecture(),
            "os": "linux",
            "config": {"Env": [_PATH], "Cmd": ["bash"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        },
    )
    manifest = _blob(
        blobs,
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{digest}", "size": size}
            ],
        },
    )
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        **manifest,
        "annotations": {"org.opencontainers.image.ref.name": name},
    }
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (target / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return str(manifest["digest"])


def blobs(layout: Path, digest: str) -> tuple[str, ...]:
    """The digests of everything that an image in a layout consists of, its manifest first.

    Raises:
        FileNotFoundError: the layout has no such image.
    """
    manifest = json.loads(_path(layout, digest).read_bytes())
    return (digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"]))


def write_difference(target: Path, layout: Path, digest: str, name: str, present: frozenset[str]) -> None:
    """Write an image of a layout as an OCI archive, without the layers that its reader has.

    Args:
        target: the archive.
        layout: the OCI layout.
        digest: of the image's manifest.
        name: the image's name and tag.
        present: digests that the reader has.
    """
    manifest = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": _path(layout, digest).stat().st_size,
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]},
    }
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode(), 0o644)
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode(), 0o644)
        for blob in blobs(layout, digest):
            if blob not in present or blob == digest:
                archive.add(_path(layout, blob), arcname=f"blobs/sha256/{blob.removeprefix('sha256:')}")


def _path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = entry.name.removeprefix("./")
    if entry.isdev() or any(name.startswith(folder) for folder in _OMITTED):
        return None
    # Two layouts of the same packages are the same bytes, whenever they were installed.
    entry.mtime = 0
    return entry


def _blob(blobs: Path, value: dict[str, object]) -> dict[str, object]:
    content = json.dumps(value).encode()
    (blobs / _digest(content)).write_bytes(content)
    return {"digest": f"sha256:{_digest(content)}", "size": len(content)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _add(tar: tarfile.TarFile, path: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
