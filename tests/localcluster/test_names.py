from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo_localcluster import clusters, errors, kubeconfig, pki, poses, state
from lora_dpo_localcluster.kind_provider import KindCluster
from lora_dpo_localcluster.node import Node
from lora_dpo_localcluster.source_provider import SourceCluster


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a-", "a/b", "..", "a" * 25])
def test_a_name_that_cannot_name_folders_and_groups_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidNameError, match="can't name a cluster"):
        state.cluster_paths(name)


def test_two_clusters_share_no_folder_lock_or_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LDJ_STATE", str(tmp_path))
    one, other = state.cluster_paths("one"), state.cluster_paths("two")
    assert {one.root, one.lock, one.cgroup}.isdisjoint({other.root, other.lock, other.cgroup})
    assert one.root.parent == tmp_path


def test_only_folders_of_clusters_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LDJ_STATE", str(tmp_path))
    (tmp_path / "beta").mkdir()
    (tmp_path / "alpha").mkdir()
    (tmp_path / "alpha.lock").touch()
    assert state.existing_clusters() == ("alpha", "beta")


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    state.write_json(tmp_path / "a.json", {"b": 1})
    state.write_json(tmp_path / "a.json", {"c": [2]})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n "c": [\n  2\n ]\n}'


def test_the_provider_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDJ_PROVIDER", "source")
    assert isinstance(clusters.open_cluster("x"), SourceCluster)
    monkeypatch.setenv("LDJ_PROVIDER", "kind")
    assert isinstance(clusters.open_cluster("x"), KindCluster)
    monkeypatch.setenv("LDJ_PROVIDER", "minikube")
    with pytest.raises(errors.LocalClusterError, match="kind or source"):
        clusters.open_cluster("x")


def test_a_slice_gets_as_many_nodes_as_it_has_hosts() -> None:
    nodes = poses.plan_nodes(1, (poses.parse("ct5p-hightpu-4t=2x2x2"), poses.parse("ct5p-hightpu-4t=2x2x1")))
    assert [node.tpu_chips for node in nodes] == [0, 4, 4, 4]
    assert [dict(node.labels).get(poses.POOL_LABEL) for node in nodes] == [None, "tpu-0", "tpu-0", "tpu-1"]
    assert dict(nodes[1].labels)["cloud.google.com/gke-tpu-topology"] == "2x2x2"


@pytest.mark.parametrize(
    ("text", "complaint"), [("ct5p-hightpu-4t", "MACHINE_TYPE=TOPOLOGY"), ("ct5p-hightpu-4t=9x9", "topology")]
)
def test_a_slice_that_does_not_exist_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(errors.LocalClusterError, match=complaint):
        poses.parse(text)


def test_a_cluster_needs_an_ordinary_node() -> None:
    with pytest.raises(errors.LocalClusterError, match="one of them ordinary"):
        poses.plan_nodes(0, ())


def test_nodes_share_no_address() -> None:
    nodes = [Node(number) for number in (1, 2, 3)]
    assert len({address for node in nodes for address in (node.address, *node.pods)}) == 9


def test_a_kubeconfig_is_for_its_owner_alone_and_holds_its_certificates(tmp_path: Path) -> None:
    authority = pki.Authority.create(tmp_path / "pki")
    user = authority.issue("admin", "admin", groups=("system:masters",))
    file = tmp_path / "kubeconfig"
    kubeconfig.write(file, cluster="c", server="https://127.0.0.1:1", authority=authority.certificate_file, user=user)
    assert file.stat().st_mode & 0o077 == 0
    assert user.key.stat().st_mode & 0o077 == 0
    assert '"client-key-data"' in file.read_text()
    assert str(tmp_path) not in file.read_text()
