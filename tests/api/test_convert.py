from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo_api import config_file, convert, yaml12
from lora_dpo_api.errors import SpecError
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.resolve import resolve


def test_the_guides_file_becomes_the_committed_manifest(data: Path) -> None:
    found = convert.to_job((data / "guide.yaml").read_text(), name="llama3")
    assert yaml12.dumps(found.manifest) == (data / "golden" / "guide.job.yaml").read_text()
    assert found.dropped == ()


def test_a_converted_job_trains_with_the_files_own_configuration(data: Path) -> None:
    text = (data / "guide.yaml").read_text()
    job = LoraDpoJob.from_body(convert.to_job(text, name="llama3", namespace="team-a").manifest)
    found = resolve(job).config
    written = config_file.load(text).config
    same = {"run_id": found.run_id, "cache": found.cache}
    assert found == written.model_copy(update=same)


def test_keys_without_a_meaning_on_a_cluster_are_listed(data: Path) -> None:
    found = convert.to_job((data / "canonical.yaml").read_text(), name="llama3")
    assert "trainer.tracker" in found.dropped
    assert found.manifest["spec"]["lora"] == {"r": 64, "alpha": 64.0, "aInitMode": "zero"}


def test_a_local_output_is_left_to_be_filled_in(data: Path) -> None:
    found = convert.to_job((data / "canonical.yaml").read_text(), name="llama3")
    assert found.manifest["spec"]["output"]["path"] == "gs://your-bucket/llama3"
    assert any(note.startswith("spec.output.path: runs/") for note in found.notes)


def test_what_no_job_may_have_is_refused(data: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.optimizer\.learningRate: 0\.001 must be at most 5e-5"):
        convert.to_job((data / "guide.yaml").read_text(), name="llama3", overrides=["--optimizer.learning_rate=1e-3"])


@pytest.mark.parametrize(
    ("override", "section", "expected"),
    [
        ("--optimizer.warmup=100", "optimizer", {"warmupSteps": 100}),
        ("--optimizer.max_grad_norm=null", "optimizer", {"maxGradNorm": convert.NO_CLIPPING}),
        ("--lora.target_modules=.*_proj", "lora", {"targetModulesRegex": ".*_proj"}),
        ("--lora.target_modules=[q_proj]", "lora", {"targetModules": ["q_proj"]}),
        ("--lora.rslora=true", "lora", {"rsLora": True}),
        ("--lora.exclude_modules=[]", "lora", {"excludeModules": []}),
        ("--output.checkpoint.every_seconds=90", "output", {"checkpoint": {"every": "90s"}}),
        ("--tracking.wandb.project=x", "tracking", {"wandb": {"project": "x", "secretRef": "wandb"}}),
    ],
)
def test_values_with_another_name_keep_their_meaning(
    override: str, section: str, expected: dict[str, object], data: Path
) -> None:
    found = convert.to_job((data / "guide.yaml").read_text(), name="llama3", overrides=[override])
    assert expected.items() <= found.manifest["spec"][section].items()
