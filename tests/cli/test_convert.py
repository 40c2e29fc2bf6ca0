from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldj.convert import name_of
from lora_dpo_api import yaml12

from .conftest import DATA, Ldj


def test_the_guides_file_becomes_the_committed_manifest(ldj: Ldj) -> None:
    result = ldj("convert", DATA / "guide.yaml", "--tpu", "v5p-8", "--name", "llama3")
    assert (result.exit_code, result.stdout) == (0, (DATA / "golden" / "guide.job.yaml").read_text())


def test_what_was_dropped_is_said_beside_the_job(ldj: Ldj) -> None:
    result = ldj("convert", DATA / "canonical.yaml", "--tpu", "v5p-8")
    assert "dropped: trainer.tracker: has no meaning on a cluster" in result.stderr
    assert "note: spec.output.path: runs/" in result.stderr
    assert "dropped" not in result.stdout


def test_what_was_converted_is_valid(ldj: Ldj) -> None:
    made = ldj("convert", DATA / "canonical.yaml", "--tpu", "v5p-8", "-n", "team-a")
    checked = ldj("validate", "-", stdin=made.stdout)
    assert (checked.exit_code, checked.stdout) == (0, "-: canonical: valid\n")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--tpu", "v5p-8"], {"tpu": {"acceleratorType": "v5p-8"}}),
        (
            ["--tpu", "ct5lp-hightpu-4t=4x4", "--slices", "2"],
            {"tpu": {"machineType": "ct5lp-hightpu-4t", "topology": "4x4", "slices": 2}},
        ),
        (["--cpu"], {"cpu": {}}),
    ],
)
def test_the_machines_come_from_the_command_line(argv: list[str], expected: dict[str, object], ldj: Ldj) -> None:
    result = ldj("convert", DATA / "guide.yaml", "-o", "json", *argv)
    assert expected.items() <= json.loads(result.stdout)["spec"].items()


def test_keys_of_the_file_can_be_changed(ldj: Ldj) -> None:
    result = ldj("convert", DATA / "guide.yaml", "--cpu", "--set", "lora.r=32", "--set", "beta=0.2")
    spec = yaml12.loads(result.stdout)["spec"]
    assert (spec["lora"]["r"], spec["beta"]) == (32, 0.2)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--tpu", "v5p-7"], "spec.tpu.acceleratorType: v5p-7 is no slice"),
        (["--tpu", "v6e-8", "--slices", "2"], "spec.tpu.slices"),
        (["--cpu", "--set", "optimizer.learning_rate=1e-3"], "spec.optimizer.learningRate: 0.001 must be at most 5e-5"),
        (["--cpu", "--set", "lora.rank=3"], "lora.rank: is unknown; did you mean r?"),
        (["--cpu", "--name", "Big"], "metadata.name must have"),
    ],
)
def test_what_no_job_can_do_is_refused_in_a_sentence(argv: list[str], words: str, ldj: Ldj) -> None:
    result = ldj("convert", DATA / "guide.yaml", *argv)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("argv", [[], ["--cpu", "--tpu", "v5p-8"]])
def test_the_machines_have_to_be_said_once(argv: list[str], ldj: Ldj) -> None:
    result = ldj("convert", DATA / "guide.yaml", *argv)
    assert result.exit_code == 2
    assert "say where to train" in result.stderr


def test_a_file_that_is_no_yaml_is_an_error_in_a_sentence(ldj: Ldj) -> None:
    result = ldj("convert", ldj.file("a: ["), "--cpu")
    assert result.exit_code == 1
    assert "is not YAML" in result.stderr


def test_a_missing_file_is_an_error_in_a_sentence(ldj: Ldj, tmp_path: Path) -> None:
    result = ldj("convert", tmp_path / "none.yaml", "--cpu")
    assert (result.exit_code, "No such file" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("lora_dpo_ultrafeedback_llama3_8b.yaml", "lora-dpo-ultrafeedback-llama3-8b"),
        ("2024-Run.v2.yaml", "run"),
        ("-", "lora-dpo"),
        (f"{'a' * 60}.yaml", "a" * 45),
    ],
)
def test_a_job_is_named_after_its_file(file: str, name: str) -> None:
    assert name_of(Path(file)) == name
