from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_dpo_api.resolve import Resolved

Changes = dict[str, Any]
Resolve = Callable[[Changes], Resolved]
Refuse = Callable[[Changes], list[str]]


def on_volume(volume: dict[str, Any], **mount: Any) -> Changes:
    return {
        "output": {"path": "/data/run"},
        "podTemplate": {
            "volumes": [{"name": "data", **volume}],
            "volumeMounts": [{"name": "data", "mountPath": "/data", **mount}],
        },
    }


def test_results_may_go_to_a_claim(resolved: Resolve) -> None:
    assert resolved(on_volume({"persistentVolumeClaim": {"claimName": "a"}})).config.output.path == "/data/run"


@pytest.mark.parametrize("volume", [{"emptyDir": {}}, {"emptyDir": {"medium": "Memory"}}, {"ephemeral": {}}, {}])
def test_results_may_not_go_to_a_volume_that_is_lost_with_its_pod(volume: dict[str, Any], refused: Refuse) -> None:
    (sentence,) = refused(on_volume(volume))
    assert sentence.startswith("spec.output.path: /data/run is on a volume of type")


def test_results_may_not_go_to_a_read_only_volume(refused: Refuse) -> None:
    assert "which is read-only" in refused(on_volume({"configMap": {}}))[0]
    assert "which is read-only" in refused(on_volume({"persistentVolumeClaim": {}}, readOnly=True))[0]


def test_data_may_come_from_a_read_only_volume(resolved: Resolve) -> None:
    changes = on_volume({"persistentVolumeClaim": {}}, readOnly=True)
    changes["output"] = {"path": "gs://bucket/run"}
    changes["initializeFromHf"] = "/data/model"
    assert resolved(changes).config.initialize_from_hf == "/data/model"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"initializeFromHf": "/models/a"}, "spec.initializeFromHf"),
        ({"data": {"tokenizer": "/models/a"}}, "spec.data.tokenizer"),
        ({"adapter": {"initFrom": "/models/a"}}, "spec.adapter.initFrom"),
        ({"reference": {"adapter": "/models/a"}}, "spec.reference.adapter"),
        ({"cache": {"path": "/cache"}}, "spec.cache.path"),
        (
            {"data": {"components": {"prefs": {"source": {"trainUrls": ["gs://a/b", "/models/a"]}}}}},
            "spec.data.components.prefs.source.trainUrls[1]",
        ),
    ],
)
def test_a_path_on_no_mounted_volume_is_refused(changes: Changes, path: str, refused: Refuse) -> None:
    assert refused(changes)[0].startswith(f"{path}: /")


def test_a_neighbouring_folder_is_not_on_the_volume(refused: Refuse) -> None:
    changes = on_volume({"persistentVolumeClaim": {}})
    changes["output"] = {"path": "/database"}
    assert refused(changes)[0].startswith("spec.output.path: /database is on no mounted volume")


def test_a_mount_without_its_fields_is_named(refused: Refuse) -> None:
    assert refused({"podTemplate": {"volumeMounts": [{"name": "a"}]}}) == [
        "spec.podTemplate.volumeMounts[0].mountPath: is required"
    ]
