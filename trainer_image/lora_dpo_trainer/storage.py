"""Files anywhere: local paths, `gs://`, `s3://`, `memory://`, through fsspec.

One place decides how credentials are found, what is retried and for how long, and how a file is replaced at once:
object stores make an upload visible whole, locally a temporary file is renamed. A remote URL never makes a folder
on this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from lora_dpo_trainer import errors

RETRY_SECONDS_VARIABLE = "LORADPO_RETRY_SECONDS"
"""Overrides how long an unreachable service is retried (default 600 s)."""

_log = logging.getLogger(__name__)
_CONNECTION_MODULES = ("aiohttp", "requests", "urllib3", "httpx", "httpcore")
_GOOGLE = ("gs://", "gcs://")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long and how often a failing call is repeated."""

    seconds: float = 600.0
    first_delay: float = 0.5
    longest_delay: float = 30.0

    @classmethod
    def from_environment(cls) -> Patience:
        """The default, or what `LORADPO_RETRY_SECONDS` says."""
        value = os.environ.get(RETRY_SECONDS_VARIABLE)
        return cls(seconds=float(value)) if value else cls()

    def pauses(self) -> Iterator[float]:
        """How long to wait before each further try, from now on; ends when it is over."""
        deadline, delay = time.monotonic() + self.seconds, self.first_delay
        while time.monotonic() + delay <= deadline:
            yield delay
            delay = min(delay * 2, self.longest_delay)


@dataclasses.dataclass(frozen=True)
class _Place:
    """A URL taken apart: its filesystem and the path in it."""

    filesystem: Any
    path: str


def is_local(url: str) -> bool:
    """Whether `url` is a path (or file:// URL) of this machine."""
    return "://" not in url or url.startswith(("file://", "local://"))


def local_path(url: str) -> Path:
    """The path behind a local URL."""
    return Path(url.split("://", 1)[1] if "://" in url else url)


def join(base: str, *parts: str) -> str:
    """Append path parts to a URL."""
    return "/".join([base.rstrip("/") or base, *(part.strip("/") for part in parts)])


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    return bool(_call(url, "look up", lambda place: place.filesystem.exists(place.path)))


def read_bytes(url: str) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: there is none.
    """
    return cast(bytes, _call(url, "read", lambda place: place.filesystem.cat_file(place.path)))


def read_json(url: str) -> Any:
    """Read a JSON file; raises FileNotFoundError when there is none."""
    return json.loads(read_bytes(url))


def write_bytes(url: str, data: bytes) -> None:
    """Replace a file at once: readers see the old or the new content, never a part."""
    if is_local(url):
        _call(url, "write", lambda _: _replace_local(local_path(url), data))
    else:
        _call(url, "write", lambda place: place.filesystem.pipe_file(place.path, data, **_checked(url)))


def write_json(url: str, value: Any) -> None:
    """Replace a JSON file at once."""
    write_bytes(url, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def append_local(path: Path, data: bytes) -> None:
    """Append to a local file, making its folder."""

    def append(_: _Place) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)

    _call(str(path), "write", append)


def upload(source: Path, url: str) -> None:
    """Copy a local file to `url`, visible at once."""
    if is_local(url):
        write_bytes(url, source.read_bytes())
    else:
        _call(url, "write", lambda place: place.filesystem.put_file(str(source), place.path, **_checked(url)))


def download(url: str, target: Path) -> Path:
    """Copy `url` to a local file; raises FileNotFoundError when there is none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    _call(url, "read", lambda place: place.filesystem.get_file(place.path, str(part)))
    part.replace(target)
    return target


def upload_folder(source: Path, url: str) -> None:
    """Copy every file of a local folder to `url`."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            upload(path, join(url, path.relative_to(source).as_posix()))


def children(url: str) -> tuple[str, ...]:
    """Names of the files and folders directly in `url`, sorted; empty when it does not exist."""

    def names(place: _Place) -> list[str]:
        entries = place.filesystem.ls(place.path, detail=False)
        return [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries]

    try:
        found = _call(url, "list", names)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    own = url.rstrip("/").rsplit("/", 1)[-1]
    return tuple(sorted({name for name in found if name and name != own}))


def delete(url: str) -> None:
    """Delete a file or folder with everything in it; nothing when it does not exist."""
    with contextlib.suppress(FileNotFoundError):
        _call(url, "delete", lambda place: place.filesystem.rm(place.path, recursive=True))


def expand(url: str) -> tuple[str, ...]:
    """The files a URL with globs matches, sorted, as URLs of the same kind; empty when there are none."""

    def matches(place: _Place) -> list[str]:
        found = place.filesystem.glob(place.path) if _has_glob(url) else [place.path]
        return [str(path) for path in found if place.filesystem.isfile(path)]

    paths = sorted(_call(url, "list", matches))
    scheme = "" if is_local(url) else url.split("://", 1)[0] + "://"
    return tuple(path if is_local(url) or "://" in path else scheme + path.lstrip("/") for path in paths)


def size(url: str) -> int:
    """Bytes of a file; raises FileNotFoundError when there is none."""
    return int(_call(url, "look up", lambda place: place.filesystem.size(place.path)))


def identity(url: str) -> str:
    """What the content of a file is known by: the store's own checksum, else its SHA-256."""
    if not is_local(url):
        info = _call(url, "look up", lambda place: place.filesystem.info(place.path))
        for name in ("md5Hash", "crc32c", "ETag", "etag"):
            if info.get(name):
                return f"{name}:{info[name]}"
    digest = hashlib.sha256()
    with open_read(url) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


@contextlib.contextmanager
def open_read(url: str) -> Iterator[BinaryIO]:
    """Open a file for streaming; opening is retried, each read relies on the filesystem's own retries."""
    stream = _call(url, "open", lambda place: place.filesystem.open(place.path, "rb"))
    with stream:
        yield stream


def probe(url: str) -> None:
    """Prove that a folder can be written to and deleted from.

    Raises:
        ConfigError: there is no such bucket.
        MissingCredentials: it cannot.
        Unreachable: the service does not answer.
    """
    name = join(url, f".probe-{os.getpid()}-{time.time_ns()}")
    try:
        write_bytes(name, b"probe")
    except FileNotFoundError as error:
        bucket = "/".join(url.split("/")[:3])
        raise errors.ConfigError(
            f"{url} cannot be written to: there is no bucket {bucket}, or it is not shown to this account.",
            hint="Create the bucket, or correct output.path or cache.path.",
        ) from error
    if read_bytes(name) != b"probe":
        raise errors.Unreachable(f"{url} does not return what was written to it")
    delete(name)


def _has_glob(url: str) -> bool:
    return any(character in url for character in "*?[")


def _checked(url: str) -> dict[str, Any]:
    """Options of a write that make the filesystem compare what the store has with what was sent."""
    return {"consistency": "md5"} if url.startswith(_GOOGLE) else {}


def _place(url: str) -> _Place:
    options: dict[str, Any] = {}
    if url.startswith(_GOOGLE):
        # Hierarchical-namespace probing asks the control API, which plain object permissions do not cover.
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        # With token=None gcsfs falls back to anonymous silently, and a missing permission looks like a missing bucket.
        options = {
            "token": "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else "google_default",
            "requests_timeout": _timeout(),
        }
    if not is_local(url) and not url.startswith("memory://"):
        options["use_listings_cache"] = False
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    return _Place(filesystem, path)


@functools.cache
def _timeout() -> Any:
    import aiohttp

    # A connection on which nothing moves would otherwise be waited for without end.
    return aiohttp.ClientTimeout(total=300, sock_connect=15, sock_read=60)


def _call[Result](
    url: str, verb: str, operation: Callable[[_Place], Result], patience: Patience | None = None
) -> Result:
    """Run an operation, repeating it while the service is unreachable."""
    patience = patience or Patience.from_environment()
    pauses = patience.pauses()
    while True:
        try:
            return operation(_place(url))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise
        except Exception as error:  # fsspec's filesystems share no base class; what is unknown is raised again
            if _is_credentials(error):
                raise errors.MissingCredentials(f"Cannot {verb} {url}: {_summary(error)}.") from error
            if isinstance(error, OSError) and error.errno in _FULL:
                raise errors.Unreachable(f"Cannot {verb} {url}: the disk is full.") from error
            if not _is_transient(error):
                raise
            pause = next(pauses, None)
            if pause is None:
                raise errors.Unreachable(
                    f"Cannot {verb} {url} after {patience.seconds:.0f} s of retries: {_summary(error)}."
                ) from error
            _log.warning("Cannot %s %s yet (%s); trying again in %.1f s", verb, url, _summary(error), pause)
        time.sleep(pause)


def _status(error: BaseException) -> int | None:
    for name in ("code", "status", "status_code"):
        value = getattr(error, name, None)
        with contextlib.suppress(TypeError, ValueError):
            return int(value)  # type: ignore[arg-type]
    return None


def _is_credentials(error: BaseException) -> bool:
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return True
    if type(error).__name__ in ("DefaultCredentialsError", "RefreshError", "NoCredentialsError"):
        return True
    if isinstance(error, OSError) and str(error).startswith("Forbidden: "):  # how gcsfs says 403
        return True
    return _status(error) in (401, 403)


def _is_transient(error: BaseException) -> bool:
    status = _status(error)
    if status is not None and (status >= 500 or status in (408, 429)):
        return True
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if type(error).__name__ in ("TransportError", "EndpointConnectionError", "ChecksumError"):
        return True
    return type(error).__module__.split(".")[0] in _CONNECTION_MODULES and status is None


def _summary(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _replace_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner may read; results are for others too.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
