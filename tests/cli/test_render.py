from __future__ import annotations

import json
from typing import Any

import pytest

from lora_dpo_api import config_file, yaml12
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.resolve import resolve

from .conftest import EXAMPLES, Ldj

KINDS = ["ConfigMap", "Job", "JobSet", "Job"]


def rendered(ldj: Ldj, *argv: Any) -> list[dict[str, Any]]:
    result = ldj("render", *argv)
    assert result.exit_code == 0, result.stderr
    return list(yaml12.loads_all(result.stdout))


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.iterdir() if (path / "job.yaml").is_file()))
def test_every_example_becomes_the_objects_of_its_phases(example: str, ldj: Ldj) -> None:
    manifests = rendered(ldj, EXAMPLES / example / "job.yaml")
    jobs = len(manifests) // len(KINDS)
    assert [manifest["kind"] for manifest in manifests] == KINDS * jobs


def test_the_config_map_holds_the_resolved_configuration(ldj: Ldj, job: dict[str, Any]) -> None:
    config_map, *_ = rendered(ldj, ldj.file(job))
    assert config_file.load(config_map["data"]["config.yaml"]).config == resolve(LoraDpoJob.from_body(job)).config


def test_all_objects_use_that_config_map(ldj: Ldj, job: dict[str, Any]) -> None:
    config_map, prepare, jobset, export = rendered(ldj, ldj.file(job))
    slice_job = jobset["spec"]["replicatedJobs"][0]["template"]
    for template in (prepare, slice_job, export):
        volumes = template["spec"]["template"]["spec"]["volumes"]
        assert volumes[0]["configMap"]["name"] == config_map["metadata"]["name"]


def test_images_are_the_jobs_own_or_the_operators(ldj: Ldj, job: dict[str, Any]) -> None:
    def image(*argv: Any) -> str:
        container = rendered(ldj, *argv)[1]["spec"]["template"]["spec"]["containers"][0]
        return str(container["image"])

    assert image(ldj.file(job), "--trainer-image", "trainer:2") == "trainer:2"
    job["spec"]["podTemplate"] = {"image": "mine:1"}
    assert image(ldj.file(job), "--trainer-image", "trainer:2") == "mine:1"


def test_a_simulated_slice_is_said_to_run_on_cpu(ldj: Ldj) -> None:
    file = EXAMPLES / "multi-slice" / "job.yaml"
    env = rendered(ldj, file, "--simulate-tpu")[2]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ][0]["env"]
    assert {"name": "LORADPO_PLATFORM", "value": "cpu"} in env


def test_json_is_one_list(ldj: Ldj, job: dict[str, Any]) -> None:
    result = ldj("render", "-o", "json", "-", stdin=json.dumps(job))
    assert [item["kind"] for item in json.loads(result.stdout)["items"]] == KINDS


def test_a_job_of_another_controller_makes_nothing(ldj: Ldj, job: dict[str, Any]) -> None:
    job["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"
    result = ldj("render", ldj.file(job))
    assert (result.exit_code, result.stdout) == (0, "")
    assert "this operator makes nothing" in result.stderr


def test_a_refused_job_does_not_hide_the_others(ldj: Ldj, job: dict[str, Any]) -> None:
    wrong = {**job, "spec": {**job["spec"], "beta": -1}}
    result = ldj("render", ldj.file(wrong, job))
    assert result.exit_code == 1
    assert "spec.beta: -1" in result.stderr
    assert [manifest["kind"] for manifest in yaml12.loads_all(result.stdout)] == KINDS


def test_a_file_without_jobs_is_an_error_in_a_sentence(ldj: Ldj) -> None:
    result = ldj("render", ldj.file({"apiVersion": "v1", "kind": "Secret"}))
    assert (result.exit_code, "holds no LoraDpoJob" in result.stderr) == (2, True)
