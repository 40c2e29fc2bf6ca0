"""kind's part, against recorded arguments: programs in place of docker and kind write down how they are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_dpo_localcluster import errors, kind_provider, poses, state
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.kind_provider import KindCluster


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file with the calls; `docker` and `kind` are first on the PATH."""
    log = tmp_path / "calls"
    log.touch()
    for name, answer in (("docker", "4711"), ("kind", "ldj-one")):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\necho {answer}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("LDJ_STATE", str(tmp_path / "state"))
    return log


def test_an_engine_that_answers_is_used(calls: Path) -> None:
    assert kind_provider.engine_answers()
    assert calls.read_text() == "docker info\n"


def test_an_engine_that_does_not_answer_is_not_used(calls: Path) -> None:
    (calls.parent / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
    assert not kind_provider.engine_answers()


def test_nodes_become_kinds_nodes_with_their_labels() -> None:
    made = kind_provider.configuration(poses.plan_nodes(1, (poses.parse("ct5p-hightpu-4t=2x2x2"),)), Path("/audited"))
    nodes = json.loads(json.dumps(made))["nodes"]
    assert [node["role"] for node in nodes] == ["control-plane", "worker", "worker"]
    assert nodes[0]["extraMounts"] == [{"hostPath": "/audited", "containerPath": "/var/log/ldj-audit"}]
    (patch,) = nodes[0]["kubeadmConfigPatches"]
    assert json.loads(patch)["apiServer"]["extraArgs"]["audit-log-path"] == "/var/log/ldj-audit/audit.log"
    assert not any("kubeadmConfigPatches" in node for node in nodes[1:])
    assert nodes[1]["labels"]["cloud.google.com/gke-tpu-topology"] == "2x2x2"


def test_an_image_is_loaded_under_the_clusters_name(calls: Path) -> None:
    KindCluster(state.cluster_paths("one")).load(Image("localhost/x:1"), print)
    assert calls.read_text() == "kind load docker-image --name=ldj-one localhost/x:1\n"


def test_an_unchanged_image_is_not_built_again(calls: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    made = KindCluster(state.cluster_paths("one")).build("operator", root, print)
    assert calls.read_text() == f"docker image inspect {made.name}\n"


def test_commands_run_in_the_network_of_the_control_plane(calls: Path) -> None:
    command = KindCluster(state.cluster_paths("one")).command(["true"])
    assert command == ["nsenter", "--net=/proc/4711/ns/net", "--", "true"]


def test_a_kubelet_is_paused_and_resumed_on_its_node(calls: Path) -> None:
    cluster = KindCluster(state.cluster_paths("one"))
    cluster.pause_kubelet("ldj-one-worker")
    cluster.resume_kubelet("ldj-one-worker")
    kill = "docker exec ldj-one-worker systemctl kill --signal="
    assert calls.read_text() == f"{kill}SIGSTOP kubelet\n{kill}SIGCONT kubelet\n"


def test_down_deletes_the_cluster_and_its_folder(calls: Path) -> None:
    paths = state.cluster_paths("one")
    paths.logs.mkdir(parents=True)
    KindCluster(paths).down(print)
    assert "kind delete cluster --name=ldj-one\n" in calls.read_text()
    assert not paths.root.exists()


def test_a_cluster_that_is_not_up_says_how_to_start_it(calls: Path) -> None:
    with pytest.raises(errors.NotRunningError, match="ldj cluster up --name one"):
        _ = KindCluster(state.cluster_paths("one")).bucket


@pytest.mark.parametrize(("asked", "made"), [("kind", "KindCluster"), ("source", "SourceCluster")])
def test_one_option_chooses_what_the_cluster_tests_run_on(asked: str, made: str, pytestconfig: pytest.Config) -> None:
    script = (
        "import pytest, sys; from lora_dpo_localcluster import clusters\n"
        "code = pytest.main(sys.argv[1:]); print(code.name, type(clusters.open_cluster('x')).__name__)"
    )
    options = ("--collect-only", "-q", "-p", "no:cacheprovider", "tests/cluster/test_crd.py", f"--cluster={asked}")
    answer = subprocess.run(
        [sys.executable, "-c", script, *options], cwd=pytestconfig.rootpath, capture_output=True, text=True
    )
    assert answer.stdout.splitlines()[-1] == f"OK {made}", answer.stdout + answer.stderr
