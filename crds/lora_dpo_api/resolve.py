"""From a job as written to a job as run: forced values, hardware, guidance, and the trainer's configuration.

A pure function, called at every reconcile and by the command line alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_dpo_api import config_file, durations, forced, guidance, hardware, levanter_keys, storage
from lora_dpo_api import config_models as c
from lora_dpo_api.errors import Problem, SpecError, parse
from lora_dpo_api.job import LoraDpoJob, LoraDpoJobSpec
from lora_dpo_api.notices import Notice
from lora_dpo_api.spec_running import Guidance
from lora_dpo_api.spec_training import Component, Lora, Optimizer, Source, SourceType

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Kueue's own label for the queue; taken from the job as well as `spec.queueName`."""

DEFAULT_WARMUP = 0.1

MP = {hardware.Platform.TPU: "p=f32,c=bfloat16", hardware.Platform.CPU: "p=f32,c=f32"}
"""Default precision. CPUs emulate bfloat16 slowly, and in float32 step 0 shows ln 2 to four digits."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A job as it will run.

    Attributes:
        job: the job with forced values in place.
        hardware: the machines it asks for.
        config: the trainer's configuration, every default written out.
        queue: Kueue's queue, from `spec.queueName` or Kueue's own label.
        warnings: forced values and advice, in the order of the fields.
    """

    job: LoraDpoJob
    hardware: hardware.Hardware
    config: c.TrainerConfig
    queue: str | None
    warnings: tuple[Notice, ...]

    @property
    def config_yaml(self) -> str:
        """The file for the trainer; the same bytes for the same job."""
        return config_file.dumps(self.config)


def resolve(job: LoraDpoJob) -> Resolved:
    """Settle everything that a spec leaves open.

    Raises:
        SpecError: the job cannot run as written; one problem for each wrong field.
    """
    spec = job.spec
    problems: list[Problem] = []
    machines = None
    try:
        machines = _hardware(spec)
    except SpecError as error:
        problems += error.problems
    problems += _base(spec)
    problems += storage.problems(spec)
    problems += _batch(spec, machines) if machines else []
    queue, conflict = _queue(job)
    problems += conflict

    start = forced.lora_start(spec.lora.zero_init_b, spec.lora.a_init_mode, "spec.lora.zeroInitB")
    lora = spec.lora.model_copy(update={"zero_init_b": start.zero_init_b, "a_init_mode": start.a_init_mode})
    settled = job.model_copy(update={"spec": spec.model_copy(update={"lora": lora})})

    findings = guidance.findings(_hyperparameters(settled.spec), guidance.JOB_PATHS)
    if spec.guidance is Guidance.ENFORCE:
        refused = [finding.notice for finding in findings if finding.severity is guidance.Severity.REFUSE]
        problems += [
            Problem(notice.path, f"{notice.message} (guidance: ignore lifts this limit)") for notice in refused
        ]
    if problems or machines is None:
        raise SpecError(problems)

    notices = [*([start.notice] if start.notice else []), *(finding.notice for finding in findings)]
    return Resolved(settled, machines, _config(settled, machines.platform), queue, tuple(notices))


def _hardware(spec: LoraDpoJobSpec) -> hardware.Hardware:
    if spec.tpu is not None:
        return hardware.of_tpu(spec.tpu)
    if spec.cpu is not None:
        return hardware.of_cpu(spec.cpu)
    raise SpecError([Problem("spec", "names no machines", ("tpu", "cpu"))])


def _base(spec: LoraDpoJobSpec) -> list[Problem]:
    """A job has a field for the revision, by which the trainer would take what follows an @ in a hub id."""
    name = spec.initialize_from_hf
    if not levanter_keys.has_revision(name):
        return []
    return [Problem("spec.initializeFromHf", "a hub id has no @; what follows it belongs in spec.revision", value=name)]


def _batch(spec: LoraDpoJobSpec, machines: hardware.Hardware) -> list[Problem]:
    """The trainer gives each device as many pairs of a step as any other."""
    devices, size = machines.devices or machines.processes, spec.trainer.train_batch_size
    if size % devices == 0:
        return []
    reason = f"cannot be split evenly over the {devices} devices of {machines.description}; set a multiple of {devices}"
    return [Problem("spec.trainer.trainBatchSize", reason, value=size)]


def _queue(job: LoraDpoJob) -> tuple[str | None, list[Problem]]:
    label, field = job.metadata.labels.get(QUEUE_LABEL), job.spec.queue_name
    if label is not None and field is not None and label != field:
        return field, [
            Problem("spec.queueName", f"contradicts the label {QUEUE_LABEL}: {label}; keep one", value=field)
        ]
    return field or label, []


def _hyperparameters(spec: LoraDpoJobSpec) -> guidance.Hyperparameters:
    return guidance.Hyperparameters(
        learning_rate=spec.optimizer.learning_rate,
        r=spec.lora.r,
        alpha=spec.lora.r if spec.lora.alpha is None else spec.lora.alpha,
        rslora=spec.lora.rs_lora,
        dropout=spec.lora.dropout,
        a_init_mode=spec.lora.a_init_mode or c.AInit.RANDOM,
    )


def _config(job: LoraDpoJob, platform: hardware.Platform) -> c.TrainerConfig:
    spec = job.spec
    tracking = spec.tracking
    fields = {
        "data": c.DataConfig(
            tokenizer=spec.data.tokenizer,
            shuffle=spec.data.shuffle,
            components={name: _component(component) for name, component in spec.data.components.items()},
            train_weights=spec.data.train_weights,
        ),
        "initialize_from_hf": spec.initialize_from_hf,
        "revision": spec.revision,
        "train_seq_len": spec.train_seq_len,
        "trainer": c.RunConfig(
            num_train_steps=spec.trainer.num_train_steps,
            num_epochs=1.0
            if spec.trainer.num_train_steps is None and spec.trainer.num_epochs is None
            else spec.trainer.num_epochs,
            train_batch_size=spec.trainer.train_batch_size,
            mp=spec.trainer.mp or MP[platform],
            seed=spec.trainer.seed,
        ),
        "optimizer": _optimizer(spec.optimizer),
        "lora": _lora(spec.lora),
        "beta": spec.beta,
        "loss": c.LossConfig(
            type=spec.loss.type, label_smoothing=spec.loss.label_smoothing, sft_weight=spec.loss.sft_weight
        ),
        "validation_split_fraction": spec.validation_split_fraction,
        "eval": c.EvalConfig(every_steps=spec.eval.every_steps, max_pairs=spec.eval.max_pairs),
        "output": c.OutputConfig(
            path=spec.output.path,
            on_existing=spec.output.on_existing.value,
            peft=c.PeftOutput(every_steps=spec.output.peft.every_steps, dtype=spec.output.peft.dtype),
            merged_hf=c.MergedOutput(enabled=spec.output.merged_hf.enabled, dtype=spec.output.merged_hf.dtype),
            checkpoint=c.CheckpointOutput(
                every_seconds=float(durations.seconds(spec.output.checkpoint.every)), keep=spec.output.checkpoint.keep
            ),
        ),
        "cache": c.CacheConfig(path=spec.cache.path or f"{spec.output.path.rstrip('/')}/cache"),
        "adapter": c.AdapterConfig(init_from=spec.adapter.init_from),
        "reference": c.ReferenceConfig(adapter=spec.reference.adapter),
        "tracking": c.TrackingConfig(
            tensorboard=tracking.tensorboard,
            wandb=c.WandbConfig(project=tracking.wandb.project, entity=tracking.wandb.entity)
            if tracking.wandb
            else None,
        ),
        "run_id": job.run_id,
    }
    return parse(c.TrainerConfig, fields)


def _component(component: Component) -> c.Component:
    shape = component.format
    return c.Component(
        source=_source(component.source),
        format=c.PreferenceChatFormat(
            chosen_field=shape.chosen_field,
            rejected_field=shape.rejected_field,
            prompt_field=shape.prompt_field,
            system_prompt=shape.system_prompt,
            chat_template=shape.chat_template,
            chat_template_kwargs=shape.chat_template_kwargs,
            mask_user_turns=shape.mask_user_turns,
            slice_strategy=shape.slice_strategy,
            pack=shape.pack,
        ),
    )


def _source(source: Source) -> c.UrlSource | c.HubSource:
    if source.type is SourceType.HF and source.id is not None:
        return c.HubSource(type="hf", id=source.id, split=source.split or "train", revision=source.revision)
    return c.UrlSource(train_urls=list(source.train_urls), validation_urls=list(source.validation_urls))


def _optimizer(optimizer: Optimizer) -> c.OptimizerConfig:
    return c.OptimizerConfig(
        learning_rate=optimizer.learning_rate,
        warmup=_warmup(optimizer),
        lr_schedule=optimizer.lr_schedule,
        min_lr_ratio=optimizer.min_lr_ratio,
        max_grad_norm=optimizer.max_grad_norm,
        weight_decay=optimizer.weight_decay,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        epsilon=optimizer.epsilon,
    )


def _warmup(optimizer: Optimizer) -> float:
    """A share of all steps below 1, a number of steps from 1 on: the file has one field for both."""
    if optimizer.warmup_steps is not None:
        return float(optimizer.warmup_steps)
    return DEFAULT_WARMUP if optimizer.warmup_ratio is None else optimizer.warmup_ratio


def _lora(lora: Lora) -> c.LoraConfig:
    return c.LoraConfig(
        r=lora.r,
        alpha=float(lora.r) if lora.alpha is None else lora.alpha,
        dropout=lora.dropout,
        zero_init_b=lora.zero_init_b,
        a_init_mode=lora.a_init_mode,
        target_modules=lora.target_modules_regex if lora.target_modules is None else list(lora.target_modules),
        exclude_modules=list(lora.exclude_modules),
        rslora=lora.rs_lora,
        rank_pattern=lora.rank_pattern,
        alpha_pattern=lora.alpha_pattern,
    )
