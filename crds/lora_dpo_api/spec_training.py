"""The part of the spec that says what to learn: data, steps, optimizer, adapter, loss, evaluation.

The names are the LoRA-DPO guide's, in camelCase.
"""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lora_dpo_api.config_models import AInit, LossType, SliceStrategy
from lora_dpo_api.wire import ComponentName, FieldName, Location, ModuleName, Rule, Url, Wire

Weight = Annotated[float, Field(ge=0, le=1e9)]
_DTYPE = r"((p|c|o|params|compute|output)=)?(float32|f32|full|bfloat16|bf16|float16|f16|half)"
MpPolicy = Annotated[str, Field(min_length=1, max_length=64, pattern=rf"^{_DTYPE}(,{_DTYPE}){{0,2}}$")]
Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(gt=0, le=65_536)]


class SourceType(enum.StrEnum):
    """Where rows come from."""

    URL = "url"
    """Files: jsonl, jsonl.gz or parquet."""
    HF = "hf"
    """A data set of the Hugging Face hub."""


class Source(Wire):
    """Where the rows of a component come from: `type: url` with `trainUrls`, or `type: hf` with `id`."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.type != 'url' || (has(self.trainUrls) && size(self.trainUrls) > 0)",
            message="type: url needs trainUrls, at least one URL or absolute path",
            path=".trainUrls",
            holds=lambda self: self.type is not SourceType.URL or bool(self.train_urls),
        ),
        Rule(
            cel="self.type != 'url' || (!has(self.id) && !has(self.split) && !has(self.revision))",
            message="id, split and revision belong to type: hf; with type: url only trainUrls and validationUrls",
            path=".type",
            holds=lambda self: (
                self.type is not SourceType.URL or (self.id is None and self.split is None and self.revision is None)
            ),
        ),
        Rule(
            cel="self.type != 'hf' || has(self.id)",
            message="type: hf needs id, such as trl-lib/ultrafeedback_binarized",
            path=".id",
            holds=lambda self: self.type is not SourceType.HF or self.id is not None,
        ),
        Rule(
            cel="self.type != 'hf' || (!has(self.trainUrls) && !has(self.validationUrls))",
            message="trainUrls and validationUrls belong to type: url; with type: hf only id, split and revision",
            path=".type",
            holds=lambda self: (
                self.type is not SourceType.HF or not self.model_fields_set & {"train_urls", "validation_urls"}
            ),
        ),
    )

    type: SourceType
    """`url` for files, `hf` for a data set of the Hugging Face hub."""
    train_urls: Annotated[tuple[Url, ...], Field(max_length=256)] = ()
    """Files with training pairs (jsonl, jsonl.gz, parquet); globs allowed. Only with `type: url`."""
    validation_urls: Annotated[tuple[Url, ...], Field(max_length=256)] = ()
    """Files with held-out pairs. Only with `type: url`."""
    id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Data set on the hub, such as `trl-lib/ultrafeedback_binarized`. Only with `type: hf`."""
    split: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Split of the hub's data set. Default: train. Only with `type: hf`."""
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of the hub's data set. Only with `type: hf`."""


class Format(Wire):
    """How a row becomes a preference pair."""

    type: Literal["preference_chat"] = "preference_chat"
    """Chat transcripts `chosen` and `rejected`: lists of {role, content}."""
    chosen_field: FieldName = "chosen"
    """Row field with the preferred transcript."""
    rejected_field: FieldName = "rejected"
    """Row field with the other transcript."""
    prompt_field: FieldName = "prompt"
    """Row field with an explicit prompt, used where a row has it."""
    system_prompt: FieldName | None = None
    """Row field with the system message."""
    chat_template: Annotated[str, Field(min_length=1, max_length=16_384)] | None = None
    """Jinja source with {% generation %} marks. Default: the tokenizer's."""
    chat_template_kwargs: FieldName = "chat_template_kwargs"
    """Row field with further arguments of the chat template."""
    mask_user_turns: bool = True
    """Count only the assistant's tokens."""
    slice_strategy: SliceStrategy = SliceStrategy.RAISE
    """What happens to an answer longer than `trainSeqLen`: raise an error, drop the pair, or keep its left or right
    end."""
    pack: bool = True
    """Taken for compatibility: rows are always packed, and packing is exact."""


class Component(Wire):
    """One data set of the mixture."""

    source: Source
    """Where the rows come from."""
    format: Format = Format()
    """How a row becomes a preference pair."""


class Data(Wire):
    """The preference data."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.trainWeights) || self.trainWeights.all(name, name in self.components)",
            message="trainWeights may only name components of spec.data.components",
            path=".trainWeights",
            holds=lambda self: self.train_weights is None or set(self.train_weights) <= set(self.components),
        ),
        Rule(
            cel="!has(self.trainWeights) || self.trainWeights.exists(name, self.trainWeights[name] > 0.0)",
            message="at least one weight must be above 0",
            path=".trainWeights",
            holds=lambda self: self.train_weights is None or any(w > 0 for w in self.train_weights.values()),
        ),
    )

    tokenizer: Location | None = None
    """Hub id or location of the tokenizer. Default: the model's."""
    shuffle: bool = True
    """Shuffle the training pairs anew for each epoch, from `trainer.seed`."""
    components: Annotated[dict[ComponentName, Component], Field(min_length=1, max_length=32)]
    """Data sets by name; at least one, at most 32."""
    train_weights: Annotated[dict[ComponentName, Weight], Field(max_length=32)] | None = None
    """Share of each component in the mixture. Default: by number of pairs."""


class Trainer(Wire):
    """How long and in which steps to train."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.numTrainSteps) || !has(self.numEpochs)",
            message="numTrainSteps and numEpochs exclude each other; set one, or neither for one epoch",
            path=".numEpochs",
            holds=lambda self: self.num_train_steps is None or self.num_epochs is None,
        ),
    )

    num_train_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps. Not together with `numEpochs`."""
    num_epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Passes over the training pairs. Default: 1, when `numTrainSteps` is absent too."""
    train_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 64
    """Pairs a step, over all hosts. Default: 64."""
    mp: MpPolicy | None = None
    """Precision: p for adapter and optimizer, c for computing and the frozen base. Default: p=f32,c=bfloat16 on TPU,
    p=f32,c=f32 on CPU."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    """Seed of initialisation, shuffling and dropout. Default: 0."""


class Optimizer(Wire):
    """AdamW over the adapter."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.warmupRatio) || !has(self.warmupSteps)",
            message="warmupRatio and warmupSteps exclude each other; set one, or neither for a ratio of 0.1",
            path=".warmupSteps",
            holds=lambda self: self.warmup_ratio is None or self.warmup_steps is None,
        ),
    )

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-6
    """Peak learning rate. Default: 5e-6; never above 5e-5 for LoRA-DPO, unless `guidance: ignore`."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of all steps in which the learning rate rises. Default: 0.1. Not together with `warmupSteps`."""
    warmup_steps: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    """Steps in which the learning rate rises. Not together with `warmupRatio`."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up. Default: cosine."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where the schedule ends, as a share of the peak. Default: 0."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Gradients are clipped to this global norm. Default: 1."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Decoupled weight decay. Default: 0."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment. Default: 0.9."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment. Default: 0.95."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Adam's epsilon. Default: 1e-8."""


class Lora(Wire):
    """The adapter: W + scale · B·A on the chosen linear layers, with scale alpha/r (or alpha/√r)."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.targetModules) || !has(self.targetModulesRegex)",
            message="targetModules and targetModulesRegex exclude each other; set one, or neither for all linear "
            "layers",
            path=".targetModulesRegex",
            holds=lambda self: self.target_modules is None or self.target_modules_regex is None,
        ),
        Rule(
            cel="!has(self.aInitMode) || self.aInitMode != 'zero' || !has(self.zeroInitB) || !self.zeroInitB",
            message="aInitMode: zero with zeroInitB: true would start both factors at zero, and nothing would ever be "
            "learned; leave one of them out",
            path=".aInitMode",
            holds=lambda self: (
                self.a_init_mode is not AInit.ZERO or not ("zero_init_b" in self.model_fields_set and self.zero_init_b)
            ),
        ),
    )

    r: Rank = 64
    """Rank. Default: 64. The guide: 16-64 below 5,000 pairs, 64-128 up to 50,000, 128-256 above."""
    alpha: Alpha | None = None
    """Scaling factor. Default: r, which is the safe choice."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input. Default: 0; 0.05 to 0.1 against overfitting."""
    zero_init_b: bool = True
    """Start with B = 0, so that policy and reference are the same at step 0. Must be true for DPO: false is forced to
    true, with a warning, unless `aInitMode: zero`."""
    a_init_mode: AInit | None = None
    """`random`: A random, B zero (PEFT's convention, the default). `zero`: A zero, B random (newer Levanter's)."""
    target_modules: Annotated[tuple[ModuleName, ...], Field(min_length=1, max_length=64)] | None = None
    """Names of the linear layers to adapt. Default: all of them. Not together with `targetModulesRegex`."""
    target_modules_regex: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Regular expression over module names, in place of `targetModules`."""
    exclude_modules: Annotated[tuple[ModuleName, ...], Field(max_length=64)] = ("lm_head",)
    """Layers left alone. Default: [lm_head]; an empty list adapts lm_head too."""
    rs_lora: bool = False
    """Rank-stabilised scaling, alpha/√r. Worth it for ranks above 64. Default: false."""
    rank_pattern: Annotated[dict[ModuleName, Rank], Field(max_length=64)] = Field(default_factory=dict)
    """Other ranks for modules whose name matches."""
    alpha_pattern: Annotated[dict[ModuleName, Alpha], Field(max_length=64)] = Field(default_factory=dict)
    """Other alphas for modules whose name matches."""


class Loss(Wire):
    """The preference loss and its extra terms."""

    type: LossType = LossType.SIGMOID
    """Function of the reward difference. Default: sigmoid, the DPO paper's."""
    label_smoothing: Annotated[float, Field(ge=0, le=0.49)] = 0.0
    """Assumed share of flipped preferences; at a half they would say nothing. Default: 0."""
    sft_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of the negative log-likelihood of the chosen answers. Default: 0."""


class Eval(Wire):
    """Evaluation on the held-out pairs; always once at the end."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Steps between evaluations. Default: only at the end."""
    max_pairs: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """At most so many pairs an evaluation. Default: 1000."""


class Adapter(Wire):
    """Go on from an existing adapter."""

    init_from: Location | None = None
    """Location of a PEFT adapter to start from."""


class Reference(Wire):
    """What the policy is compared with."""

    adapter: Location | None = None
    """Location of a PEFT adapter (such as an SFT one) that the reference keeps. Default: the base model alone."""


class WandbTracking(Wire):
    """Weights & Biases."""

    project: Annotated[str, Field(min_length=1, max_length=128)]
    """Project to log to."""
    entity: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Team or user. Default: the key's."""
    secret_ref: Annotated[str, Field(min_length=1, max_length=253)]
    """Secret in the job's namespace whose key WANDB_API_KEY holds the API key."""


class Tracking(Wire):
    """Optional trackers; all off by default."""

    tensorboard: bool = False
    """Write TensorBoard files under `output.path`."""
    wandb: WandbTracking | None = None
    """Log to Weights & Biases."""
