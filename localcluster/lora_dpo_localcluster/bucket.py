"""A Cloud Storage bucket on this machine: fake-gcs-server, so that `gs://` paths work as on GKE."""

from __future__ import annotations

import dataclasses
import json
import urllib.error
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
            NotReadyError: the server doesn't answer.
        """
        request = urllib.request.Request(
            f"{self.host_url}/storage/v1/b?project=ldj",
            data=json.dumps({"name": name}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            _OPENER.open(request, timeout=30).close()
        except urllib.error.HTTPError as refused:
            if refused.code != 409:
                raise errors.NotReadyError(f"The bucket {name} can't be made: {refused}") from refused
        except OSError as unreachable:
            raise errors.NotReadyError(f"No storage server at {self.host_url}: {unreachable}") from unreachable
        return f"gs://{name}"

    def answers(self) -> bool:
        """Whether the server takes requests."""
        try:
            _OPENER.open(f"{self.host_url}/storage/v1/b?project=ldj", timeout=5).close()
        except OSError:
            return False
        return True


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


def _environment(url: str) -> dict[str, str]:
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        # gcsfs would first ask a gRPC endpoint that isn't there, for a minute.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
