"""The models of the trainer's configuration file: the LoRA-DPO guide's own schema, in snake_case.

`config_file` reads and writes it. No heavy import happens here or there.
"""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_LEARNING_RATE = 5e-5
"""Never exceed it for LoRA-DPO: the guide, "Learning Rate"."""


class Section(BaseModel):
    """Base of every part of the file: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UrlSource(Section):
    """Rows in files: jsonl, jsonl.gz or parquet, on any fsspec URL, globs allowed."""

    type: Literal["url"] = "url"
    train_urls: list[str] = []
    validation_urls: list[str] = []


class HubSource(Section):
    """Rows in a data set of the Hugging Face hub."""

    type: Literal["hf"]
    id: str
    split: str = "train"
    revision: str | None = None


class SliceStrategy(enum.StrEnum):
    """What happens to a pair longer than `train_seq_len`, with Levanter's meanings."""

    RAISE = "raise"
    DROP = "drop"
    LEFT = "left"
    """Keep the beginning."""
    RIGHT = "right"
    """Keep the end."""


class PreferenceChatFormat(Section):
    """How a row becomes a preference pair."""

    type: Literal["preference_chat"] = "preference_chat"
    chosen_field: str = "chosen"
    rejected_field: str = "rejected"
    prompt_field: str = "prompt"
    """Used when a row has it: TRL's explicit-prompt form."""
    system_prompt: str | None = None
    """Name of a row field with the system message."""
    chat_template: str | None = None
    """Jinja source; default: the tokenizer's. Must mark assistant turns with {% generation %}."""
    chat_template_kwargs: str = "chat_template_kwargs"
    mask_user_turns: bool = True
    slice_strategy: SliceStrategy = SliceStrategy.RAISE
    pack: bool = True
    """Accepted for compatibility; rows are always packed, and packing is exact."""


class Component(Section):
    """One data set of the mixture."""

    source: Annotated[UrlSource | HubSource, Field(discriminator="type")]
    format: PreferenceChatFormat = PreferenceChatFormat()


class DataConfig(Section):
    """The preference data."""

    tokenizer: str | None = None
    """Default: the model's."""
    shuffle: bool = True
    components: dict[str, Component] = Field(min_length=1, max_length=32)
    train_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None


class RunConfig(Section):
    """The guide's `trainer:` section."""

    num_train_steps: int | None = Field(default=None, ge=1)
    num_epochs: float | None = Field(default=None, gt=0)
    """Used when `num_train_steps` is absent; default one epoch."""
    train_batch_size: int = Field(default=64, ge=1)
    """Pairs a step."""
    mp: str = "p=f32,c=bfloat16"
    """jmp policy: p = adapter and optimizer, c = compute and frozen base."""
    seed: int = 0


class OptimizerConfig(Section):
    """AdamW over the adapter."""

    learning_rate: float = Field(default=5e-6, gt=0)
    warmup: float = Field(default=0.1, ge=0)
    """Below 1 a fraction of all steps, else a number of steps."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)


class AInit(enum.StrEnum):
    """Which of LoRA's factors starts at zero; exactly one does."""

    RANDOM = "random"
    """A random, B zero: PEFT's convention and the guide's `zero_init_b: true`."""
    ZERO = "zero"
    """A zero, B random: newer Levanter's default."""


class LoraConfig(Section):
    """The adapter."""

    r: int = Field(default=64, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    """Default: r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    zero_init_b: bool = True
    a_init_mode: AInit | None = None
    target_modules: list[str] | str | None = None
    """Module names, or a regular expression over them; null means all linear layers."""
    exclude_modules: list[str] = ["lm_head"]
    rslora: bool = False
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}

    @property
    def resolved_alpha(self) -> float:
        """`alpha`, or r where it is absent."""
        return float(self.r) if self.alpha is None else self.alpha


class LossType(enum.StrEnum):
    """The preference loss on the reward difference."""

    SIGMOID = "sigmoid"
    IPO = "ipo"
    HINGE = "hinge"
    ROBUST = "robust"
    SIGMOID_NORM = "sigmoid_norm"
    """Sigmoid over length-normalised log-probabilities."""


class LossConfig(Section):
    """The loss and its extra terms."""

    type: LossType = LossType.SIGMOID
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    sft_weight: float = Field(default=0.0, ge=0)


class EvalConfig(Section):
    """Evaluation on the validation split, and always once at the end."""

    every_steps: int | None = Field(default=None, ge=1)
    max_pairs: int = Field(default=1000, ge=1)


class PeftOutput(Section):
    """Adapter snapshots on the way; the final adapter is always written."""

    every_steps: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of every written adapter. Default: float32, as it is trained."""


class MergedOutput(Section):
    """A merged Hugging Face checkpoint, made by the export phase."""

    enabled: bool = False
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


class CheckpointOutput(Section):
    """Resumable training state."""

    every_seconds: float = Field(default=120.0, gt=0)
    keep: int = Field(default=2, ge=1)


class OutputConfig(Section):
    """Where results go."""

    path: str
    on_existing: Literal["resume", "overwrite", "fail"] = "resume"
    peft: PeftOutput = PeftOutput()
    merged_hf: MergedOutput = MergedOutput()
    checkpoint: CheckpointOutput = CheckpointOutput()


class CacheConfig(Section):
    """Prepared rows, reference log-probabilities, compile cache; shared by the jobs of a sweep."""

    path: str | None = None
    """Default: <output.path>/cache."""


class AdapterConfig(Section):
    """Start from an existing PEFT adapter."""

    init_from: str | None = None


class ReferenceConfig(Section):
    """What the policy is compared with; default: the base without adapter."""

    adapter: str | None = None


class WandbConfig(Section):
    """Weights & Biases; its key comes from WANDB_API_KEY."""

    project: str
    entity: str | None = None


class TrackingConfig(Section):
    """Optional trackers, all off by default."""

    tensorboard: bool = False
    wandb: WandbConfig | None = None


class TrainerConfig(Section):
    """The whole file."""

    data: DataConfig
    initialize_from_hf: str
    """Hub id, fsspec URL or path of a Hugging Face checkpoint."""
    revision: str | None = None
    train_seq_len: int = Field(default=4096, ge=16)
    """Longest answer sequence (prompt + one answer), in tokens."""
    trainer: RunConfig = RunConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig = LoraConfig()
    beta: float = Field(default=0.1, gt=0)
    loss: LossConfig = LossConfig()
    validation_split_fraction: float = Field(default=0.0, ge=0, lt=1)
    eval: EvalConfig = EvalConfig()
    output: OutputConfig
    cache: CacheConfig = CacheConfig()
    adapter: AdapterConfig = AdapterConfig()
    reference: ReferenceConfig = ReferenceConfig()
    tracking: TrackingConfig = TrackingConfig()
    run_id: str | None = None
    """Identity of the run in `output.path`; default: a digest of the configuration."""

    @property
    def cache_path(self) -> str:
        """`cache.path`, or the folder `cache` of the output."""
        return self.cache.path or f"{self.output.path.rstrip('/')}/cache"
