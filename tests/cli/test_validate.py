from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_operator import accept
from lora_dpo_operator.observed import Refused
from lora_dpo_operator.settings import Settings

from .conftest import DATA, Ldj

SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf"}}


def test_a_valid_job_passes(ldj: Ldj, job: dict[str, Any]) -> None:
    file = ldj.file(job)
    result = ldj("validate", file)
    assert (result.exit_code, result.stdout) == (0, f"{file}: tiny: valid\n")


def test_every_problem_is_a_line_of_its_own(ldj: Ldj, job: dict[str, Any]) -> None:
    job["spec"] |= {"beta": 0, "lora": {"rank": 8}, "trainSeqLen": "long"}
    result = ldj("validate", ldj.file(job))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split(": ")[3] for line in lines] == ["spec.trainSeqLen", "spec.lora.rank", "spec.beta"]
    assert "did you mean r?" in lines[1]


def test_what_is_said_offline_is_what_the_operator_says(ldj: Ldj, job: dict[str, Any]) -> None:
    del job["spec"]["cpu"]
    job["spec"] |= {"tpu": {"machineType": "ct5p-hightpu-4t", "topology": "3x3x3"}, "queueName": "a"}
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "b"}
    verdict = accept.judge(job, Settings())
    assert isinstance(verdict, Refused)
    result = ldj("validate", "-o", "json", ldj.file(job))
    assert "; ".join(problem["message"] for problem in json.loads(result.stdout)[0]["problems"]) == verdict.message


def test_advice_is_said_and_refuses_nothing(ldj: Ldj, job: dict[str, Any]) -> None:
    job["spec"]["lora"] = {"r": 16, "zeroInitB": False}
    result = ldj("validate", ldj.file(job))
    assert result.exit_code == 0
    assert "warning: spec.lora.zeroInitB: false is forced to true" in result.stdout


def test_a_learning_rate_that_the_guide_forbids_is_refused(ldj: Ldj, job: dict[str, Any]) -> None:
    job["spec"]["optimizer"] = {"learningRate": 1e-3}
    assert ldj("validate", ldj.file(job)).exit_code == 1
    job["spec"]["guidance"] = "ignore"
    assert ldj("validate", ldj.file(job)).exit_code == 0


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml12.loads)])
def test_verdicts_are_data_for_programs(form: str, read: Any, ldj: Ldj, job: dict[str, Any]) -> None:
    wrong = {**job, "metadata": {"name": "Tiny"}}
    result = ldj("validate", "--output", form, ldj.file(job, wrong))
    assert result.exit_code == 1
    good, bad = read(result.stdout)
    assert (good["name"], good["namespace"], good["valid"], good["problems"]) == ("tiny", "team-a", True, [])
    assert (bad["name"], bad["valid"]) == ("Tiny", False)
    assert "metadata.name must have at most 45" in bad["problems"][0]["message"]


def test_other_objects_of_a_file_are_left_alone(ldj: Ldj, job: dict[str, Any]) -> None:
    result = ldj("validate", ldj.file(SECRET, job, {"kind": "List", "items": [job, SECRET]}))
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2


def test_a_job_as_the_cluster_holds_it_passes(ldj: Ldj, job: dict[str, Any]) -> None:
    job["metadata"] |= {"uid": "u", "generation": 2, "managedFields": [{}], "creationTimestamp": "2026-01-01T00:00:00Z"}
    assert ldj("validate", ldj.file(job | {"status": {"phase": "Running"}})).exit_code == 0


def test_line_breaks_and_terminal_codes_of_a_file_are_shown_not_obeyed(ldj: Ldj, job: dict[str, Any]) -> None:
    job["spec"]["loss"] = {"type": "ipo\n\x1b[2Jvalid"}
    (line,) = ldj("validate", ldj.file(job)).stdout.splitlines()
    assert r"spec.loss.type: ipo\n\x1b[2Jvalid is not allowed" in line


def test_a_job_from_standard_input_is_checked(ldj: Ldj, job: dict[str, Any]) -> None:
    assert ldj("validate", "-", stdin=json.dumps(job)).stdout == "-: tiny: valid\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": None}, "kind: is required: LoraDpoJob"),
        ({"apiVersion": None}, "apiVersion: is required: training.loradpo.dev/v1alpha1"),
        ({"kind": "LoraDPOJob"}, "kind: LoraDPOJob is not allowed; allowed: LoraDpoJob"),
        ({"apiVersion": "training.loradpo.dev/v1"}, "apiVersion: training.loradpo.dev/v1 is not allowed"),
        ({"metadata": None}, "metadata: is required"),
        ({"metadata": "tiny"}, "metadata: tiny must hold fields"),
        ({"spec": None}, "spec: is required"),
        ({"spec": []}, "spec: [] must hold fields"),
    ],
)
def test_an_object_that_is_hardly_a_job_is_told_what_is_missing(
    change: dict[str, Any], words: str, ldj: Ldj, job: dict[str, Any]
) -> None:
    changed = {key: value for key, value in (job | change).items() if value is not None}
    result = ldj("validate", ldj.file(changed))
    assert result.exit_code == 1
    assert words in result.stdout


def test_a_trainer_configuration_is_sent_to_convert(ldj: Ldj) -> None:
    result = ldj("validate", DATA / "guide.yaml")
    assert result.exit_code == 1
    assert "make one of it with `ldj convert`" in result.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "is not YAML"),
        ("- a\n- b\n", "must hold objects with apiVersion and kind, not list"),
        ("", "holds no objects"),
        ("a: 1\na: 2\n", "is not YAML"),
        (yaml12.dumps(SECRET), "holds no LoraDpoJob"),
    ],
)
def test_a_file_without_jobs_is_an_error_in_a_sentence(content: str, words: str, ldj: Ldj) -> None:
    result = ldj("validate", ldj.file(content))
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_file_does_not_hide_the_others(ldj: Ldj, job: dict[str, Any], tmp_path: Path) -> None:
    result = ldj("validate", tmp_path / "none.yaml", ldj.file(job))
    assert result.exit_code == 2
    assert "none.yaml: No such file or directory." in result.stderr
    assert "tiny: valid" in result.stdout


def test_bytes_that_are_no_text_are_an_error_in_a_sentence(ldj: Ldj, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    result = ldj("validate", tmp_path / "job.yaml")
    assert (result.exit_code, "is not text in UTF-8" in result.stderr) == (2, True)


def test_the_program_itself_ends_with_the_code(ldj: Ldj, job: dict[str, Any]) -> None:
    job["spec"]["beta"] = -1
    program = Path(sys.executable).with_name("ldj")
    answer = subprocess.run([program, "validate", ldj.file(job)], capture_output=True, text=True)
    assert answer.returncode == 1
    assert "spec.beta: -1" in answer.stdout
    assert "Traceback" not in answer.stdout + answer.stderr
