"""One real cluster for all tests of a session, with the project's images and a bucket.

`LDJ_TEST_CLUSTER` names it (`test` by default); with `LDJ_KEEP_CLUSTER=1` it stays up, so that the next run starts at
once. `--cluster=kind` or `--cluster=source` says what it is made of; the default is kind where a Docker engine answers.
Nothing here is specific to one part: every cluster test shares these fixtures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_dpo_localcluster import bucket as buckets
from lora_dpo_localcluster import clusters, poses
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.provider import Cluster, Shape

if TYPE_CHECKING:
    from .loradpojobs import Operator

ROOT = Path(__file__).resolve().parents[2]
SHAPE = Shape(nodes=1, poses=(poses.parse("ct5p-hightpu-4t=2x2x2"),))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cluster", choices=("kind", "source"), help="what the clusters of the tests are made of")


def pytest_configure(config: pytest.Config) -> None:
    """Every cluster that a test opens is made of what was asked for."""
    if chosen := config.getoption("--cluster", None):
        os.environ["LDJ_PROVIDER"] = chosen


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the cluster; the test of the rights looks back at all others."""
    folder = Path(__file__).parent
    here = [item for item in items if folder in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.cluster)
    last = [item for item in here if item.path.name == "test_rights.py"]
    everything = {item.path for item in here} == set(folder.glob("test_*.py"))
    items[:] = [item for item in items if item not in last] + (last if everything else [])


@dataclasses.dataclass(frozen=True, slots=True)
class Kubectl:
    """`kubectl` with the test cluster's kubeconfig."""

    cluster: Cluster

    def __call__(self, *argv: str, stdin: str | Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever comes of it; a mapping on its standard input is written as JSON."""
        return subprocess.run(
            [str(self.cluster.kubectl), f"--kubeconfig={self.cluster.kubeconfig}", *argv],
            input=json.dumps(stdin) if isinstance(stdin, Mapping) else stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def text(self, *argv: str, stdin: str | Mapping[str, Any] | None = None) -> str:
        """What kubectl prints; the test fails when kubectl does."""
        answer = self(*argv, stdin=stdin)
        if answer.returncode != 0:
            pytest.fail(f"kubectl {' '.join(argv)}: {answer.stderr.strip()}")
        return answer.stdout

    def json(self, *argv: str, stdin: str | Mapping[str, Any] | None = None) -> Any:
        """What kubectl prints with `-o json`, parsed; the test fails when kubectl does."""
        return json.loads(self.text(*argv, "-o", "json", stdin=stdin))

    @contextlib.contextmanager
    def watching(self, *argv: str, see: Callable[[str], None]) -> Iterator[None]:
        """Run a `kubectl get --watch` meanwhile, and show each of its lines as it comes."""
        with subprocess.Popen(
            [str(self.cluster.kubectl), f"--kubeconfig={self.cluster.kubeconfig}", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as watch:

            def read() -> None:
                assert watch.stdout is not None
                for line in watch.stdout:
                    see(line)

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            try:
                yield
            finally:
                watch.terminate()
                reader.join()


def cluster_name() -> str:
    """The name of the session's cluster; others of the same session begin with it, so that sessions do not meet."""
    return os.environ.get("LDJ_TEST_CLUSTER") or "test"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The session's cluster, up: one ordinary node, and two nodes that pose as the hosts of a v5p 2x2x2 slice."""
    made = clusters.open_cluster(cluster_name())
    made.up(SHAPE, _report)
    yield made
    if os.environ.get("LDJ_KEEP_CLUSTER") != "1":
        made.down(_report)


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    """`kubectl` for the session's cluster."""
    return Kubectl(cluster)


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A fresh Kubernetes namespace, removed after the test without waiting for it."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    kubectl.text("create", "namespace", name)
    wait_for(lambda: kubectl("-n", name, "get", "serviceaccount", "default").returncode == 0, "its service account")
    yield name
    kubectl.text("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def operator_image(cluster: Cluster) -> Image:
    """The operator's image, on every node."""
    return _loaded(cluster, "operator")


@pytest.fixture(scope="session")
def trainer_image(cluster: Cluster) -> Image:
    """The trainer's image, on every node."""
    return _loaded(cluster, "trainer")


@pytest.fixture(scope="session")
def operator(cluster: Cluster, kubectl: Kubectl, operator_image: Image, trainer_image: Image) -> Operator:
    """The operator of this checkout, running in the cluster."""
    # Not at the top: that module needs this one's classes.
    from . import loradpojobs

    return loradpojobs.start_operator(cluster, kubectl, operator_image, trainer_image)


@dataclasses.dataclass(frozen=True, slots=True)
class Bucket:
    """A fresh bucket.

    Attributes:
        url: `gs://NAME`, the same for this machine and for pods.
        server: where it is served; `server.host_env` and `server.pod_env` are what each side needs.
    """

    url: str
    server: buckets.BucketServer

    def read(self, path: str) -> bytes:
        """What an object of the bucket holds; fails where there is none."""
        return self.server.read(f"{self.url}/{path}")

    def write(self, path: str, content: bytes) -> str:
        """Write an object of the bucket and return its URL."""
        self.server.write(f"{self.url}/{path}", content)
        return f"{self.url}/{path}"

    def objects(self, prefix: str = "") -> tuple[str, ...]:
        """The URLs of the bucket's objects whose paths start like this, in order."""
        return self.server.objects(f"{self.url}/{prefix}")


@pytest.fixture
def bucket(cluster: Cluster) -> Bucket:
    """A bucket of the test's own."""
    server = cluster.bucket
    return Bucket(server.create(f"test-{uuid.uuid4().hex[:12]}"), server)


def wait_for[T](question: Callable[[], T], what: str, *, timeout: float = 60, interval: float = 0.2) -> T:
    """Ask until the answer is true, and return it; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := question()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:.0f} s for {what}; the last answer was {answer!r}")
        time.sleep(interval)
    return answer


def _loaded(cluster: Cluster, target: str) -> Image:
    image = cluster.build(target, ROOT, _report)
    cluster.load(image, _report)
    return image


def _report(line: str) -> None:
    print(line, flush=True)
