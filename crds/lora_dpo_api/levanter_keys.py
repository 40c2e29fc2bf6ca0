"""Levanter's own configuration keys: what they mean here.

The guide's file is written for Levanter, whose trainer has many keys about meshes, trackers and checkpoints that this
one decides by itself. Those are dropped by name and reported; keys with a counterpart here move to it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_dpo_api.errors import ConfigError, Problem


def _keys(words: str) -> frozenset[str]:
    return frozenset(words.split())


IGNORED_TOP = _keys(
    "data_seed eval_harness eval_harness_steps hf_generation_eos_token_ids hf_save_path hf_upload "
    "initialize_from_checkpoint_path lm_validation_data lm_validation_prefix log_entropy merged_hf_upload model "
    "peft_hf_upload reference_eval_cache run_initial_eval scheduled_eval_steps trust_remote_code use_hf_model_config "
    "z_loss_weight"
)
IGNORED_TRAINER = _keys(
    "allow_nondivisible_batch_size allow_partial_checkpoint axis_resources checkpointer crash_on_inf crash_on_nan "
    "distributed fsdp_axis id initialize_from jax_compilation_cache_dir jax_config load_checkpoint "
    "load_checkpoint_path load_debug_weights log_dir log_jaxprs log_xla_hlo max_eval_batches mesh model_averaging "
    "parameter_axis_resources per_device_eval_parallelism per_device_parallelism profiler profiler_num_steps "
    "profiler_perfetto_link profiler_start_step progress_watchdog quantization ray replica_dcn_axis_size "
    "replica_ici_axis_size require_accelerator shutdown_at_exit tensor_parallel_axes tracker use_explicit_mesh_axes "
    "wandb watch xla_dump_upload"
)
IGNORED_DATA = _keys(
    "auto_build_caches block_cross_document_attention cache_catalog cache_dir cache_options enforce_eos "
    "experiment_budget max_train_batches mixture_block_size num_validation_sequences permutation_type "
    "prior_context_phases shuffle_before_trainval_split stop_strategy target_budget vocab_size"
)
IGNORED_COMPONENT = _keys("cache_dir flat_cache pack split tags type")
IGNORED_SOURCE = _keys("cache_dir stream tags")
IGNORED_OPTIMIZER = _keys(
    "adamc_weight_decay cooldown cycle_length cycles decay default_weight_decay_mask haps nesterov rewarmup "
    "skip_bad_steps update_rms_clipping weight_decay_modules"
)

Tree = dict[str, Any]


@dataclass(slots=True)
class Translation:
    """A configuration on its way from Levanter's keys to ours.

    Attributes:
        tree: the raw configuration, changed in place.
        ignored: keys that were dropped.
        notes: keys that moved, in a sentence each.
    """

    tree: Tree
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, section: object, keys: frozenset[str], path: str) -> None:
        """Leave out keys without a meaning here."""
        if isinstance(section, dict):
            for key in [key for key in section if key in keys]:
                del section[key]
                self.ignored.append(f"{path}{key}")

    def section(self, *path: str) -> Tree:
        """A nested section, made when absent; a detached one when something else is in its place."""
        here = self.tree
        for key in path:
            child = here.setdefault(key, {})
            if not isinstance(child, dict):
                return {}
            here = child
        return here


def translate(raw: Mapping[str, Any]) -> Translation:
    """Levanter's configuration in this project's keys.

    Raises:
        ConfigError: the file asks for something that is not LoRA-DPO.
    """
    work = Translation(_without_nulls(raw))
    _base(work)
    _adapter_and_reference(work)
    _outputs(work)
    _training(work)
    _data(work)
    work.drop(work.tree, IGNORED_TOP, "")
    return work


def _without_nulls(value: Any, path: str = "") -> Any:
    """A deep copy where null means default, except where it has a meaning of its own: no clipping."""
    if isinstance(value, Mapping):
        kept = {key: _without_nulls(child, f"{path}.{key}") for key, child in value.items()}
        return {k: v for k, v in kept.items() if v is not None or f"{path}.{k}" == ".optimizer.max_grad_norm"}
    if isinstance(value, list):
        return [_without_nulls(child, path) for child in value]
    return value


def has_revision(name: str) -> bool:
    """Whether a base is called `org/model@revision`, as Levanter has it."""
    return "@" in name and "://" not in name and not name.startswith(("/", ".", "~"))


def _base(work: Translation) -> None:
    name = work.tree.get("initialize_from_hf")
    if isinstance(name, str) and has_revision(name):
        work.tree["initialize_from_hf"], _, revision = name.partition("@")
        if work.tree.setdefault("revision", revision) != revision:
            raise ConfigError([Problem("revision", f"contradicts initialize_from_hf: {name}; keep one of them")])


def _adapter_and_reference(work: Translation) -> None:
    """Newer Levanter's `adapter: {type: lora, …}` and `reference: {type: adapter_base}`."""
    adapter = work.tree.get("adapter")
    if isinstance(adapter, dict) and "type" in adapter:
        kind = adapter.pop("type")
        if kind != "lora":
            raise ConfigError([Problem("adapter.type", "is not LoRA", ("lora",), kind)])
        moved = {key: adapter.pop(key) for key in list(adapter) if key != "init_from"}
        if moved and "lora" in work.tree:
            raise ConfigError([Problem("adapter", "and lora both describe the adapter; keep one of them")])
        if moved:
            work.tree["lora"] = moved
    reference = work.tree.get("reference")
    if isinstance(reference, dict) and "type" in reference:
        kind = reference.pop("type")
        if kind != "adapter_base":
            reason = "is not possible: LoRA-DPO's reference is the base model without its adapter"
            raise ConfigError([Problem("reference.type", reason, ("adapter_base",), kind)])


def _outputs(work: Translation) -> None:
    """The guide's `peft_save_path`, `merged_hf_save_path` and `hf_save_steps`."""
    peft = work.tree.pop("peft_save_path", None)
    merged = work.tree.pop("merged_hf_save_path", None)
    steps = work.tree.pop("hf_save_steps", None)
    dtype = work.tree.pop("hf_save_dtype", None)
    output = work.section("output")
    for key, path, part in (("peft_save_path", peft, "adapter"), ("merged_hf_save_path", merged, "merged")):
        if path is None:
            continue
        output.setdefault("path", posixpath.dirname(str(path).rstrip("/")) or ".")
        work.notes.append(f"{key}: this trainer writes {posixpath.join(str(output['path']), part)}")
    if steps is not None:
        work.section("output", "peft").setdefault("every_steps", steps)
    if merged is not None:
        work.section("output", "merged_hf").setdefault("enabled", True)
    if dtype is not None:
        work.section("output", "merged_hf").setdefault(
            "dtype", {"bf16": "bfloat16", "f32": "float32"}.get(dtype, dtype)
        )


def _training(work: Translation) -> None:
    trainer = work.tree.get("trainer")
    work.drop(trainer, IGNORED_TRAINER, "trainer.")
    if isinstance(trainer, dict) and "steps_per_eval" in trainer:
        work.section("eval").setdefault("every_steps", trainer.pop("steps_per_eval"))
        work.notes.append("trainer.steps_per_eval: is eval.every_steps here")
    optimizer = work.tree.get("optimizer")
    if isinstance(optimizer, dict):
        kind = optimizer.pop("type", "adam")
        if kind != "adam":
            raise ConfigError([Problem("optimizer.type", "is not available", ("adam",), kind)])
        if "warmup_ratio" in optimizer:
            optimizer.setdefault("warmup", optimizer.pop("warmup_ratio"))
        work.drop(optimizer, IGNORED_OPTIMIZER, "optimizer.")


def _data(work: Translation) -> None:
    data = work.tree.get("data")
    if not isinstance(data, dict):
        return
    work.drop(data, IGNORED_DATA, "data.")
    if isinstance(data.get("shuffle"), dict | int) and not isinstance(data["shuffle"], bool):
        data["shuffle"] = True
        work.notes.append("data.shuffle: rows are shuffled whole, in place of blocks")
    template = data.pop("chat_template", None)
    components = data.get("components")
    for name, component in components.items() if isinstance(components, dict) else ():
        if not isinstance(component, dict):
            continue
        path = f"data.components.{name}."
        work.drop(component, IGNORED_COMPONENT, path)
        source = component.get("source")
        work.drop(source, IGNORED_SOURCE, f"{path}source.")
        if isinstance(source, dict) and isinstance(source.get("splits"), list) and len(source["splits"]) == 1:
            source.setdefault("split", source.pop("splits")[0])
        if template is not None:
            shape = component.setdefault("format", {})
            if isinstance(shape, dict):
                shape.setdefault("chat_template", template)
