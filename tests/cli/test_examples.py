"""The examples: each runs as written, but for the bucket, and shows what it says."""

from __future__ import annotations

from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.config_file import LossType
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.resolve import Resolved, resolve
from lora_dpo_operator.placement import place

from .conftest import EXAMPLES

NAMES = sorted(path.name for path in EXAMPLES.iterdir() if (path / "job.yaml").is_file())


def bodies(name: str) -> tuple[dict[str, Any], ...]:
    return yaml12.loads_all((EXAMPLES / name / "job.yaml").read_text())


def example(name: str) -> Resolved:
    (body,) = bodies(name)
    return resolve(LoraDpoJob.from_body(body))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_accepted(name: str) -> None:
    for body in bodies(name):
        assert (body["apiVersion"], body["kind"]) == ("training.loradpo.dev/v1alpha1", "LoraDpoJob")
        resolve(LoraDpoJob.from_body(body))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "quickstart"])
def test_an_example_follows_the_guide(name: str) -> None:
    assert [resolve(LoraDpoJob.from_body(body)).warnings for body in bodies(name)] == [()] * len(bodies(name))


def test_no_two_examples_share_a_name_or_an_output() -> None:
    jobs = [body for name in NAMES for body in bodies(name)]
    assert len({body["metadata"]["name"] for body in jobs}) == len(jobs)
    assert len({body["spec"]["output"]["path"] for body in jobs}) == len(jobs)


def test_the_guides_run_has_the_guides_values() -> None:
    config = example("ultrafeedback-llama3-8b").config
    assert (config.lora.r, config.lora.alpha, config.lora.zero_init_b, config.beta) == (64, 64.0, True, 0.1)
    assert (config.optimizer.learning_rate, config.optimizer.warmup, config.train_seq_len) == (5e-6, 0.1, 4096)
    assert (config.trainer.num_train_steps, config.trainer.train_batch_size) == (2000, 128)
    assert config.validation_split_fraction == 0.1


def test_several_slices_have_several_hosts_each() -> None:
    hardware = example("multi-slice").hardware
    assert (hardware.slices, hardware.hosts, hardware.chips) == (2, 4, 16)


def test_spot_capacity_is_asked_for_and_its_taint_tolerated() -> None:
    found = example("spot")
    placement = place(found.hardware, found.job.spec.tpu, simulate=False)
    assert placement.node_selector["cloud.google.com/gke-spot"] == "true"
    assert "cloud.google.com/gke-spot" in {toleration["key"] for toleration in placement.tolerations}


def test_the_queued_job_waits_in_its_queue() -> None:
    assert example("kueue").queue == "tpu-queue"


def test_the_ipo_job_minimises_ipo() -> None:
    assert example("ipo").config.loss.type is LossType.IPO


def test_rslora_scales_as_alpha_r_would_without_it() -> None:
    lora = example("rslora").config.lora
    assert (lora.r, lora.rslora) == (256, True)
    assert lora.resolved_alpha / lora.r**0.5 == 1


def test_no_layer_is_excluded_where_lm_head_is_adapted() -> None:
    assert example("lm-head").config.lora.exclude_modules == []


def test_the_second_round_goes_on_from_the_adapter_that_it_is_compared_with() -> None:
    config = example("continue-adapter").config
    assert config.adapter.init_from == config.reference.adapter == "gs://your-bucket/runs/first-round/adapter"


def test_the_jobs_of_a_sweep_differ_in_beta_and_output_alone_and_share_their_cache() -> None:
    configs = [resolve(LoraDpoJob.from_body(body)).config for body in bodies("beta-sweep")]
    assert sorted(config.beta for config in configs) == [0.05, 0.1, 0.2, 0.5]
    assert len({config.cache.path for config in configs}) == 1
    first = configs[0]
    for config in configs:
        own = {"beta": first.beta, "output": first.output, "run_id": first.run_id}
        assert config.model_copy(update=own) == first


def test_the_list_of_examples_is_complete() -> None:
    listed = [
        line.split("`")[1] for line in (EXAMPLES / "README.md").read_text().splitlines() if line.startswith("| `")
    ]
    assert sorted(listed) == NAMES
