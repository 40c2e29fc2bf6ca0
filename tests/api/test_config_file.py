from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import config_file
from lora_dpo_api.config_file import AInit, ConfigError, HubSource, LoadedConfig

MINIMAL = """
data: {components: {prefs: {source: {type: url, train_urls: [a.jsonl]}}}}
initialize_from_hf: hub/model
output: {path: out}
"""


def load(*overrides: str) -> LoadedConfig:
    return config_file.load(MINIMAL, overrides)


def refused(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return [str(problem) for problem in caught.value.problems]


def test_the_guides_file_loads_unchanged(data: Path) -> None:
    loaded = config_file.load((data / "guide.yaml").read_text())
    config = loaded.config
    assert (config.optimizer.learning_rate, config.optimizer.warmup, config.optimizer.lr_schedule) == (
        5e-6,
        0.1,
        "cosine",
    )
    assert (config.lora.r, config.lora.resolved_alpha, config.lora.zero_init_b) == (64, 64.0, True)
    assert (config.trainer.num_train_steps, config.trainer.train_batch_size) == (2000, 128)
    assert (config.output.path, config.output.peft.every_steps) == ("gs://bucket/checkpoints", 1000)
    assert config.output.merged_hf.enabled
    assert loaded.ignored == ()
    assert loaded.warnings == (
        "peft_save_path: this trainer writes gs://bucket/checkpoints/adapter",
        "merged_hf_save_path: this trainer writes gs://bucket/checkpoints/merged",
    )


def test_newer_levanters_form_loads_and_its_own_keys_are_listed(data: Path) -> None:
    loaded = config_file.load((data / "canonical.yaml").read_text())
    assert (loaded.config.lora.r, loaded.config.lora.a_init_mode, loaded.config.lora.zero_init_b) == (
        64,
        AInit.ZERO,
        False,
    )
    assert (loaded.config.eval.every_steps, loaded.config.data.shuffle) == (200, True)
    assert loaded.ignored == (
        "trainer.tracker",
        "trainer.checkpointer",
        "trainer.mesh",
        "data.cache_dir",
        "data.permutation_type",
        "data.components.my_prefs.cache_dir",
    )
    assert re.fullmatch(r"runs/[0-9a-f]{12}", loaded.config.output.path)


def test_without_an_output_the_same_configuration_gets_the_same_folder() -> None:
    text = MINIMAL.replace("output: {path: out}", "")
    first, second, other = (
        config_file.load(text, words).config.output.path for words in ([], [], ["--trainer.seed=1"])
    )
    assert first == second != other


def test_what_is_written_is_read_back_the_same() -> None:
    config = load("--optimizer.max_grad_norm=null", "--lora.target_modules=[q_proj, v_proj]").config
    text = config_file.dumps(config)
    assert config_file.load(text).config == config
    assert config_file.dumps(config_file.load(text).config) == text
    assert config.optimizer.max_grad_norm is None


def test_overrides_are_yaml_one_two_in_both_spellings() -> None:
    config = load(
        "--optimizer.learning_rate=5e-6", "--lora.r", "8", "--lora.target_modules=.*_proj", "--run_id=no"
    ).config
    assert (config.optimizer.learning_rate, config.lora.r, config.lora.target_modules) == (5e-6, 8, ".*_proj")
    assert config.run_id == "no"


def test_an_override_makes_the_sections_it_needs() -> None:
    assert load("--tracking.wandb.project=x").config.tracking.wandb is not None


def test_a_hub_data_set_may_be_written_with_levanters_splits() -> None:
    hub = load("--data.components.prefs.source={type: hf, id: org/set, splits: [test]}")
    assert hub.config.data.components["prefs"].source == HubSource(type="hf", id="org/set", split="test")


def test_a_false_zero_init_b_is_forced_with_a_warning() -> None:
    loaded = load("--lora.zero_init_b=false")
    assert loaded.config.lora.zero_init_b
    assert [warning.partition(":")[0] for warning in loaded.warnings] == ["lora.zero_init_b"]


def test_a_learning_rate_above_the_limit_is_a_warning_outside_of_a_cluster() -> None:
    (warning,) = load("--optimizer.learning_rate=1e-4").warnings
    assert warning.startswith("optimizer.learning_rate: 0.0001 is above 5e-5")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--optimizer.lr=3"], "optimizer.lr: is unknown; did you mean learning_rate?"),
        (["--lora.rank=3"], "lora.rank: is unknown; did you mean r?"),
        (["--lora.dropuot=0"], "lora.dropuot: is unknown; did you mean dropout?"),
        (["--beta=-1"], "beta: -1 must be above 0.0"),
        (["--beta=.inf"], "beta: inf must be a finite number"),
        (["--loss.type=foo"], "loss.type: foo is not allowed; allowed: sigmoid, ipo, hinge, robust, sigmoid_norm"),
        (["--lora=3"], "lora: 3 must hold fields"),
        (["--trainer.num_train_steps=1.5"], "trainer.num_train_steps: 1.5 must be a whole number"),
        (["--data.components.prefs.source.type=s3"], "data.components.prefs.source: needs a type; allowed: url, hf"),
        (["--data.components.prefs.source.train_url=a"], "data.components.prefs.source.train_url: is unknown; did you"),
        (["--beta"], "beta: has no value; write --beta=value"),
        (["beta=1"], "beta=1: is not an override; write --a.b.c=value"),
        (["--reference={type: separate, model_path: x}"], "reference.type: separate is not possible"),
        (["--adapter={type: none}"], "adapter.type: none is not LoRA; allowed: lora"),
        (["--optimizer.type=muon"], "optimizer.type: muon is not available; allowed: adam"),
        (["--initialize_from_hf=null"], "initialize_from_hf: is required"),
        (["--lora.a_init_mode=zero", "--lora.zero_init_b=true"], "lora.zero_init_b: true and a_init_mode: zero would"),
    ],
)
def test_a_wrong_word_is_refused_with_its_path_and_what_is_allowed(words: list[str], sentence: str) -> None:
    assert refused(*words)[0].startswith(sentence)


def test_an_override_below_a_single_value_is_refused() -> None:
    assert refused("--beta=1", "--beta.x=3") == ["beta: has no field x: it is one value"]


def test_every_wrong_key_is_named_at_once() -> None:
    assert len(refused("--beta=-1", "--lora.r=0", "--trainer.steps=3")) == 3


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the file: "):
        config_file.load(text)


def test_two_descriptions_of_the_adapter_are_refused() -> None:
    assert refused("--lora.r=8", "--adapter={type: lora, r: 4}") == [
        "adapter: and lora both describe the adapter; keep one of them"
    ]


def test_reading_a_configuration_needs_no_heavy_import() -> None:
    script = "import sys, lora_dpo_api.config_file; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"jax", "levanter", "numpy", "kubernetes", "torch"} & set(loaded)


@pytest.mark.parametrize("key", ["trainer.wandb", "trainer.ray", "data.cache_dir", "reference_eval_cache", "model"])
def test_levanters_own_keys_are_ignored_by_name(key: str) -> None:
    value: Any = "{a: 1}"
    assert load(f"--{key}={value}").ignored == (key,)


def test_a_revision_may_follow_the_models_name_as_levanter_writes_it() -> None:
    text = "data: {components: {a: {source: {type: url, train_urls: [x]}}}}\ninitialize_from_hf: "
    config = config_file.load(f"{text}org/model@v1").config
    assert (config.initialize_from_hf, config.revision) == ("org/model", "v1")
    assert config_file.load(f"{text}gs://bucket/a@b").config.initialize_from_hf == "gs://bucket/a@b"
    with pytest.raises(config_file.ConfigError, match="contradicts initialize_from_hf: org/model@v1"):
        config_file.load(f"{text}org/model@v1\nrevision: v2")
