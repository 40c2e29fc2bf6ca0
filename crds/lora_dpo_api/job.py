"""LoraDpoJob v1alpha1: one preference-tuning run, from a base model and pairs to an adapter in a bucket."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from lora_dpo_api.config_models import MAX_LEARNING_RATE
from lora_dpo_api.errors import SpecError, parse
from lora_dpo_api.spec_running import (
    Cache,
    Cpu,
    Guidance,
    HuggingFace,
    ManagedBy,
    Output,
    PodTemplate,
    Prepare,
    QueueName,
    RunPolicy,
    Tpu,
)
from lora_dpo_api.spec_training import Adapter, Data, Eval, Lora, Loss, Optimizer, Reference, Tracking, Trainer
from lora_dpo_api.status import LoraDpoJobStatus
from lora_dpo_api.wire import API_VERSION, DNS_LABEL, KIND, NAME_LIMIT, RETRY_ANNOTATION, Location, Rule, Ruled, Wire


class LoraDpoJobSpec(Wire):
    """What to train, on what, and where the result goes."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.tpu) != has(self.cpu)",
            message="set exactly one of tpu (the slice to train on) and cpu (to try things out)",
            path=".tpu",
            holds=lambda self: (self.tpu is None) != (self.cpu is None),
        ),
        Rule(
            cel="!has(self.optimizer) || !has(self.optimizer.learningRate) "
            "|| self.optimizer.learningRate <= 0.00005 || (has(self.guidance) && self.guidance == 'ignore')",
            message="must be at most 5e-5, above which LoRA-DPO diverges: start at 5e-6 and stay between 5e-7 and 1e-5 "
            "(guidance: ignore lifts this limit)",
            path=".optimizer.learningRate",
            holds=lambda self: self.optimizer.learning_rate <= MAX_LEARNING_RATE or self.guidance is Guidance.IGNORE,
        ),
    )

    initialize_from_hf: Location
    """Base model, which is the reference too: a hub id, gs://…, s3://…, or a path on a mounted volume."""
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of a hub model. Default: its main branch, pinned in the status."""
    hugging_face: HuggingFace | None = None
    """Access to gated or private models and data."""
    data: Data
    """The preference data."""
    train_seq_len: Annotated[int, Field(ge=16, le=1_048_576)] = 4096
    """Longest prompt with one answer, in tokens. Default: 4096."""
    validation_split_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training pairs held out for evaluation. Default: 0."""
    eval: Eval = Eval()
    """Evaluation on the held-out pairs."""
    trainer: Trainer = Trainer()
    """How long and in which steps to train."""
    optimizer: Optimizer = Optimizer()
    """AdamW over the adapter."""
    lora: Lora = Lora()
    """The adapter's shape and initialisation."""
    adapter: Adapter = Adapter()
    """Go on from an existing adapter."""
    reference: Reference = Reference()
    """What the policy is compared with. Default: the base model without adapter."""
    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """DPO temperature: how strongly the policy is held to the reference. Default: 0.1."""
    loss: Loss = Loss()
    """The preference loss."""
    output: Output
    """Where results go."""
    cache: Cache = Cache()
    """What jobs of a sweep share."""
    tpu: Tpu | None = None
    """The TPU slice to train on; this or `cpu`."""
    cpu: Cpu | None = None
    """CPU hosts instead, to try things out."""
    prepare: Prepare = Prepare()
    """The CPU job before the slice."""
    run_policy: RunPolicy = RunPolicy()
    """When to run, wait, restart and stop."""
    run_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Identity of the run in `output.path`; the same one resumes. Default: namespace/name."""
    queue_name: QueueName | None = None
    """Kueue's LocalQueue to wait in."""
    managed_by: ManagedBy | None = None
    """Another controller that runs this job, such as kueue.x-k8s.io/multikueue."""
    guidance: Guidance = Guidance.ENFORCE
    """enforce: refuse what the guide calls never right. ignore: only advise. Default: enforce."""
    tracking: Tracking = Tracking()
    """Optional trackers."""
    pod_template: PodTemplate = PodTemplate()
    """Additions to the pods."""


class Metadata(BaseModel):
    """The part of an object's metadata that the operator reads; the rest is ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str | None = None
    creation_timestamp: AwareDatetime | None = None
    deletion_timestamp: datetime.datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @property
    def retry(self) -> str | None:
        """The user's last wish for another try, whatever its value."""
        return self.annotations.get(RETRY_ANNOTATION, "")[:64] or None


class LoraDpoJob(Ruled):
    """A LoraDpoJob as the API server holds it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"size(self.metadata.name) <= {NAME_LIMIT} && self.metadata.name.matches(r'{DNS_LABEL}')",
            message=f"metadata.name must have at most {NAME_LIMIT} lowercase letters, digits and dashes, and begin "
            "with a letter: it becomes part of host names",
            holds=lambda self: (
                len(self.metadata.name) <= NAME_LIMIT and re.fullmatch(DNS_LABEL, self.metadata.name) is not None
            ),
        ),
    )

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    api_version: Literal["training.loradpo.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["LoraDpoJob"] = KIND  # type: ignore[assignment]
    metadata: Metadata
    spec: LoraDpoJobSpec
    status: LoraDpoJobStatus = LoraDpoJobStatus()

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> LoraDpoJob:
        """Read what the API server or a user's file holds.

        A status that this version cannot read (another version wrote it) counts as none: it is derived anew.

        Raises:
            SpecError: with a problem for each wrong field.
        """
        job = parse(cls, {key: value for key, value in body.items() if key != "status"}, SpecError)
        try:
            status = LoraDpoJobStatus.model_validate(body.get("status") or {})
        except ValidationError:
            return job
        return job.model_copy(update={"status": status})

    @property
    def run_id(self) -> str:
        """Identity of the run in `output.path`."""
        return self.spec.run_id or f"{self.metadata.namespace}/{self.metadata.name}"

    def to_manifest(self) -> dict[str, Any]:
        """The object as a user would write it: only what was set, without status."""
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": self.metadata.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True),
            "spec": self.spec.to_wire(),
        }
