from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.errors import SpecError
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.status import JobPhase

Refuse = Callable[[dict[str, Any]], list[str]]
SOURCE = "spec.data.components.prefs.source"


def prefs(source: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"components": {"prefs": {"source": source}}}}


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"tpu": {"acceleratorType": "v6e-8"}}, ["spec.tpu: set exactly one of tpu"]),
        ({"cpu": None}, ["spec.tpu: set exactly one of tpu"]),
        (
            {"trainer": {"numTrainSteps": 1, "numEpochs": 1}},
            ["spec.trainer.numEpochs: numTrainSteps and numEpochs exclude"],
        ),
        (
            {"optimizer": {"warmupRatio": 0.1, "warmupSteps": 5}},
            ["spec.optimizer.warmupSteps: warmupRatio and warmupSteps"],
        ),
        (
            {"lora": {"targetModules": ["q"], "targetModulesRegex": "q"}},
            ["spec.lora.targetModulesRegex: targetModules and"],
        ),
        (
            {"lora": {"zeroInitB": True, "aInitMode": "zero"}},
            ["spec.lora.aInitMode: aInitMode: zero with zeroInitB: true"],
        ),
        ({"output": {"path": "memory://x"}}, ["spec.output.path: memory://x must be a folder in a bucket"]),
        ({"cache": {"path": "relative/path"}}, ["spec.cache.path: relative/path must be a folder in a bucket"]),
        ({"data": {"trainWeights": {"other": 1}}}, ["spec.data.trainWeights: trainWeights may only name components"]),
        ({"data": {"trainWeights": {"prefs": 0}}}, ["spec.data.trainWeights: at least one weight must be above 0"]),
        (prefs({"trainUrls": []}), [f"{SOURCE}.trainUrls: type: url needs trainUrls"]),
        (prefs({"id": "a/b"}), [f"{SOURCE}.type: id, split and revision belong to type: hf"]),
        (prefs({"type": "hf", "trainUrls": None}), [f"{SOURCE}.id: type: hf needs id"]),
        (prefs({"type": "hf", "id": "a/b"}), [f"{SOURCE}.type: trainUrls and validationUrls belong to type: url"]),
        ({"cpu": None, "tpu": {}}, ["spec.tpu: set machineType with topology"]),
        ({"cpu": None, "tpu": {"topology": "2x4"}}, ["spec.tpu.topology: topology needs machineType"]),
        (
            {"cpu": None, "tpu": {"topology": "2x4", "acceleratorType": "v6e-8"}},
            ["spec.tpu.acceleratorType: acceleratorType excludes"],
        ),
        (
            {"cpu": None, "tpu": {"acceleratorType": "v6e-8", "capacity": {"type": "reservation"}}},
            ["spec.tpu.capacity.reservation: type: reservation needs the name"],
        ),
        (
            {
                "cpu": None,
                "tpu": {
                    "acceleratorType": "v6e-8",
                    "capacity": {"type": "spot", "reservation": "a", "reservationProject": "b"},
                },
            },
            ["spec.tpu.capacity.reservation: type: reservation", "spec.tpu.capacity.reservationProject: belongs to"],
        ),
        ({"lora": {"rank": 8}}, ["spec.lora.rank: is unknown; did you mean r?"]),
        ({"optimizer": {"learning_rat": 1}}, ["spec.optimizer.learning_rat: is unknown; did you mean learningRate?"]),
        ({"runPolicy": {"activeDeadline": "0s"}}, ["spec.runPolicy.activeDeadline: 0s is not a duration"]),
        ({"guidance": "off"}, ["spec.guidance: off is not allowed; allowed: enforce, ignore"]),
        ({"lora": {"r": 0}, "beta": 0}, ["spec.lora.r: 0 must be at least 1", "spec.beta: 0 must be above 0.0"]),
        ({"initializeFromHf": None}, ["spec.initializeFromHf: is required"]),
    ],
)
def test_a_spec_of_the_wrong_shape_is_refused_field_by_field(
    changes: dict[str, Any], sentences: list[str], refused: Refuse
) -> None:
    found = refused(changes)
    assert len(found) == len(sentences), found
    for sentence, expected in zip(found, sentences, strict=True):
        assert sentence.startswith(expected)


@pytest.mark.parametrize("name", ["a" * 46, "1a", "A", "a_b", "a-", ""])
def test_a_name_that_cannot_be_part_of_a_host_name_is_refused(name: str, body: dict[str, Any]) -> None:
    body["metadata"]["name"] = name
    with pytest.raises(SpecError, match=r"metadata\.name must have at most 45"):
        LoraDpoJob.from_body(body)


def test_credentials_in_the_environment_are_never_repeated(refused: Refuse) -> None:
    (sentence,) = refused({"podTemplate": {"env": ["hf_verysecret"]}})
    assert sentence.startswith("spec.podTemplate.env[0]: must")
    assert "verysecret" not in sentence


def test_a_long_value_is_cut(refused: Refuse) -> None:
    (sentence,) = refused({"output": {"path": "x" * 1000}})
    assert len(sentence) < 300


def test_a_manifest_holds_only_what_was_written(data: Path) -> None:
    written = yaml12.loads((data / "job.yaml").read_text())
    assert LoraDpoJob.from_body(written).to_manifest() == written


def test_a_status_of_another_version_counts_as_none(body: dict[str, Any]) -> None:
    assert LoraDpoJob.from_body(body | {"status": {"phase": "Dreaming"}}).status.phase is None
    assert LoraDpoJob.from_body(body | {"status": {"phase": "Running", "new": 1}}).status.phase is JobPhase.RUNNING


def test_a_spec_is_a_frozen_value(body: dict[str, Any]) -> None:
    job = LoraDpoJob.from_body(body)
    with pytest.raises(ValueError, match="frozen"):
        job.spec.lora.r = 3  # type: ignore[misc]
