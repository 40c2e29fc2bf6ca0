"""Puts files into the local cluster's bucket and gets them back, over the Cloud Storage JSON API."""

from __future__ import annotations

import http.client
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_dpo_localcluster.bucket import BucketServer

TIMEOUT = 120.0

# No proxy of the machine may see what goes to its own loopback address.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ObjectError(Exception):
    """An object couldn't be written or read; the message names it."""


def upload(server: BucketServer, files: Iterable[tuple[Path, str]]) -> int:
    """Put files under `gs://` URLs; an object of that name is replaced.

    Args:
        server: the storage server.
        files: each file with its URL.

    Returns:
        How many bytes were sent.

    Raises:
        ObjectError: the server refused one, or can't be reached.
    """
    total = 0
    for file, url in files:
        bucket, name = split(url)
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        size = file.stat().st_size
        with file.open("rb") as source:
            request = urllib.request.Request(
                f"{server.host_url}/upload/storage/v1/b/{bucket}/o?{query}",
                data=source,
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)},
                method="POST",
            )
            _send(request, f"{file} can't be written to {url}").close()
        total += size
    return total


def download(server: BucketServer, url: str, folder: Path) -> tuple[Path, ...]:
    """Get every object under a `gs://` folder; names below it are kept.

    Raises:
        ObjectError: there is none, or the server can't be reached.
    """
    bucket, prefix = split(url)
    prefix = prefix.rstrip("/") + "/"
    query = urllib.parse.urlencode({"prefix": prefix})
    request = urllib.request.Request(f"{server.host_url}/storage/v1/b/{bucket}/o?{query}")
    with _send(request, f"{url} can't be listed") as answer:
        listing: dict[str, Any] = json.load(answer)
    names = [entry["name"] for entry in listing.get("items", []) if not entry["name"].endswith("/")]
    if not names:
        raise ObjectError(f"There is nothing under {url}.")
    written = []
    for name in names:
        target = folder / name.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(
            f"{server.host_url}/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"
        )
        with _send(request, f"gs://{bucket}/{name} can't be read") as answer, target.open("wb") as sink:
            shutil.copyfileobj(answer, sink)
        written.append(target)
    return tuple(written)


def split(url: str) -> tuple[str, str]:
    """Bucket and name of a `gs://` URL.

    Raises:
        ObjectError: it is no such URL.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    if scheme != "gs" or not bucket:
        raise ObjectError(f"{url!r} isn't a gs:// URL.")
    return bucket, name


def _send(request: urllib.request.Request, what: str) -> http.client.HTTPResponse:
    try:
        answer: http.client.HTTPResponse = _OPENER.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as refused:
        raise ObjectError(f"{what}: {refused.code} {refused.read(500).decode(errors='replace')}") from refused
    except OSError as unreachable:
        raise ObjectError(f"{what}: {unreachable}") from unreachable
    return answer
