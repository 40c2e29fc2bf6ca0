"""Unpacked images, kept between clusters: a node starts with them by hard links instead of importing them.

Unpacking a trainer image takes a node most of a minute, and every node of every cluster would do it again. So it is
done once, by a container runtime that runs for nothing else, and its folder becomes the starting point of every
node's own. Links are safe: a layer's files are never written again, only its databases are, and those are copied.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_dpo_localcluster import errors, locks, oci, state, tools, waiting
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.tools import CONTAINERD, Report, Tools

_DATABASES = ("*.db",)


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """The folder of a container runtime that has images and runs nothing."""

    folder: Path

    @property
    def _root(self) -> Path:
        return self.folder / "containerd"

    @property
    def _names(self) -> Path:
        return self.folder / "names"

    def names(self) -> frozenset[str]:
        """The images in it."""
        return frozenset(self._names.read_text().split()) if self._names.is_file() else frozenset()

    def add(self, image: Image, built: Tools, report: Report) -> None:
        """Unpack an image, unless it is there; older images of the same repository go.

        Args:
            image: the image.
            built: the programs.
            report: gets a line when it is done.

        Raises:
            CommandError: the runtime refuses the archive.
        """
        with locks.locked(self.folder.with_name(f"{self.folder.name}.lock")):
            name = image.name
            if name in self.names():
                return
            started = time.monotonic()
            self.folder.mkdir(parents=True, exist_ok=True)
            repository = name.rpartition(":")[0]
            old = frozenset(other for other in self.names() if other.rpartition(":")[0] == repository)
            # What is half-way in or out isn't listed, so a kill here costs no more than doing it again.
            self._list(self.names() - old)
            with _runtime(self._root, built) as ctr:
                import_image(ctr, image)
                if old:
                    _must([*ctr, "image", "rm", "--sync", *old])
            self._list(self.names() | {name})
            report(f"unpacked {name} ({time.monotonic() - started:.1f} s)")

    def _list(self, names: frozenset[str]) -> None:
        part = self._names.with_suffix(".part")
        part.write_text("\n".join(sorted(names)))
        part.replace(self._names)

    def seed(self, root: Path) -> frozenset[str]:
        """Give a runtime that hasn't started yet the store's images.

        Args:
            root: the runtime's folder; must not exist.

        Returns:
            The images that it got; none where links aren't possible, as between two file systems.
        """
        with locks.locked(self.folder.with_name(f"{self.folder.name}.lock")):
            if not self._root.is_dir():
                return frozenset()
            try:
                _copy(self._root, root)
            except errors.CommandError:
                shutil.rmtree(root, ignore_errors=True)
                return frozenset()
            return self.names()


def current() -> Store:
    """The store in the cache folder, for the container runtime that is built now."""
    return Store(state.cache_folder() / "store" / tools.key(CONTAINERD))


def import_image(ctr: Sequence[str], image: Image) -> None:
    """Give a container runtime an image, without copying the layers that it has.

    Args:
        ctr: the command of the runtime's client.
        image: the image.

    Raises:
        CommandError: the runtime refuses it.
    """
    if image.archive is not None:
        _must([*ctr, "image", "import", str(image.archive)])
    elif image.layout is not None:
        present = frozenset(_must([*ctr, "content", "ls", "--quiet"]).split())
        with tempfile.NamedTemporaryFile(prefix="part-", suffix=".tar", dir=image.layout) as file:
            oci.write_difference(Path(file.name), image.layout, image.digest, image.name, present)
            _must([*ctr, "image", "import", file.name])
    else:
        raise errors.CommandError(f"The image {image.name} is in no archive and no layout on this machine.")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _must(["cp", "--archive", "--link", str(source), str(target)])
    for pattern in _DATABASES:
        for database in target.rglob(pattern):
            if "snapshots" not in database.relative_to(target).parts:
                content = database.read_bytes()
                database.unlink()
                database.write_bytes(content)
                database.chmod(0o600)


@contextlib.contextmanager
def _runtime(root: Path, built: Tools) -> Iterator[list[str]]:
    """A container runtime with namespaces of its own; gives the command of its client."""
    with tempfile.TemporaryDirectory(prefix="ldj-store-") as scratch:
        folder = Path(scratch)
        socket, log, config = folder / "c.sock", folder / "log", folder / "config.toml"
        config.write_text(
            "version = 3\n"
            # Nothing runs here, and the part that serves Kubernetes would look for a network.
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'root = "{root}"\nstate = "{folder / "state"}"\n[grpc]\n  address = "{socket}"\n'
        )
        binaries = built.folder(CONTAINERD)
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
                    *(binaries / "containerd", f"--config={config}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        ctr = [str(binaries / "ctr"), "-a", str(socket), "-n", "k8s.io"]
        try:
            waiting.until(
                lambda: subprocess.run([*ctr, "version"], capture_output=True).returncode == 0,
                "the container runtime",
                timeout=60,
                log=log,
                alive=lambda: process.poll() is None,
            )
            yield ctr
        finally:
            # Its databases are transactional: whatever was answered is in them, however it ends.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _must(argv: Sequence[str]) -> str:
    answer = subprocess.run(argv, capture_output=True, text=True)
    if answer.returncode != 0:
        raise errors.CommandError(f"`{' '.join(argv[:6])} …` failed: {answer.stderr.strip()[-1000:]}")
    return answer.stdout
