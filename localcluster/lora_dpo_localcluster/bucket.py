"""A Cloud Storage bucket on this machine: fake-gcs-server, so that `gs://` paths work as on GKE."""

from __future__ import annotations

import dataclasses
import json
import urllib.error
import urllib.parse
import urllib.request

from lora_dpo_localcluster import errors
from lora_dpo_localcluster.namespace_init import ADDRESS
from lora_dpo_localcluster.processes import Processes
from lora_dpo_localcluster.tools import FAKE_GCS_SERVER, Tools

# No proxy of the machine may see what goes to its own loopback address.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclasses.dataclass(frozen=True, slots=True)
class BucketServer:
    """The storage server of a cluster: the same `gs://` paths everywhere, under one address for each side.

    Attributes:
        host_url: for this machine, and for processes in the cluster's network namespace.
        pod_url: for pods.
    """

    host_url: str
    pod_url: str

    @property
    def host_env(self) -> dict[str, str]:
        """The environment in which gcsfs and TensorStore on this machine find the server."""
        return _environment(self.host_url)

    @property
    def pod_env(self) -> dict[str, str]:
        """The environment in which gcsfs and TensorStore in a pod find the server."""
        return _environment(self.pod_url)

    def create(self, name: str) -> str:
        """Make a bucket; one that exists stays as it is.

        Returns:
            Its URL, `gs://NAME`.

        Raises:
            CommandError: the server refuses or doesn't answer.
        """
        body = json.dumps({"name": name}).encode()
        self._request("/storage/v1/b?project=ldj", body, "application/json", accepted=(409,))
        return f"gs://{name}"

    def write(self, url: str, content: bytes) -> None:
        """Write the object at `gs://BUCKET/PATH`.

        Raises:
            CommandError: the server refuses or doesn't answer.
        """
        name, path = _split(url)
        self._request(
            f"/upload/storage/v1/b/{name}/o?uploadType=media&name={path}", content, "application/octet-stream"
        )

    def read(self, url: str) -> bytes:
        """What the object at `gs://BUCKET/PATH` holds.

        Raises:
            CommandError: there is no such object, or the server doesn't answer.
        """
        name, path = _split(url)
        return self._request(f"/storage/v1/b/{name}/o/{path}?alt=media")

    def objects(self, url: str) -> tuple[str, ...]:
        """The URLs of the objects below `gs://BUCKET/PREFIX`, in order.

        Raises:
            CommandError: there is no such bucket, or the server doesn't answer.
        """
        name, prefix = _split(url)
        found: list[str] = []
        page = ""
        while True:
            answer = json.loads(self._request(f"/storage/v1/b/{name}/o?prefix={prefix}&pageToken={page}"))
            found += [f"gs://{name}/{item['name']}" for item in answer.get("items", ())]
            page = urllib.parse.quote(answer.get("nextPageToken", ""), safe="")
            if not page:
                return tuple(sorted(found))

    def answers(self) -> bool:
        """Whether the server takes requests."""
        try:
            self._request("/storage/v1/b?project=ldj")
        except errors.CommandError:
            return False
        return True

    def _request(
        self, path: str, body: bytes | None = None, content_type: str = "", accepted: tuple[int, ...] = ()
    ) -> bytes:
        request = urllib.request.Request(
            self.host_url + path, data=body, headers={"Content-Type": content_type} if content_type else {}
        )
        try:
            with _OPENER.open(request, timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as refused:
            with refused:
                if refused.code in accepted:
                    return refused.read()
            raise errors.CommandError(f"The storage server answers {refused.code} to {path}.") from refused
        except OSError as unreachable:
            raise errors.CommandError(f"No storage server answers at {self.host_url}: {unreachable}") from unreachable


def server(port: int, pod_address: str = ADDRESS) -> BucketServer:
    """The server on this port."""
    return BucketServer(host_url=f"http://127.0.0.1:{port}", pod_url=f"http://{pod_address}:{port}")


def start(processes: Processes, tools: Tools, port: int) -> None:
    """Start the server, without waiting; objects lie in the cluster's folder."""
    processes.start(
        "bucket",
        [
            tools.program(FAKE_GCS_SERVER, "fake-gcs-server"),
            "-scheme=http",
            "-host=0.0.0.0",
            f"-port={port}",
            "-backend=filesystem",
            f"-filesystem-root={processes.paths.root / 'bucket'}",
            "-log-level=warn",
        ],
    )


def _split(url: str) -> tuple[str, str]:
    """Bucket and quoted path of a `gs://` URL."""
    name, _, path = url.removeprefix("gs://").partition("/")
    return name, urllib.parse.quote(path, safe="")


def _environment(url: str) -> dict[str, str]:
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        # gcsfs would first ask a gRPC endpoint that isn't there, for a minute.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
