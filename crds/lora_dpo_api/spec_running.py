"""The part of the spec that says where to run and where results go: slice, output, cache, policy, pods."""

from __future__ import annotations

import enum
import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lora_dpo_api.durations import Duration
from lora_dpo_api.wire import STORAGE, KubernetesObject, Location, ObjectName, Rule, StringMap, Wire

HardwareName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9-]+$")]
Topology = Annotated[str, Field(min_length=3, max_length=15, pattern=r"^[0-9]{1,3}(x[0-9]{1,3}){1,2}$")]


STORAGE_MESSAGE = (
    "must be a folder in a bucket (gs://bucket/folder, s3://bucket/folder) or an absolute path on a mounted volume"
)


class OnExisting(enum.StrEnum):
    """What to do when the output folder already holds a run."""

    RESUME = "resume"
    OVERWRITE = "overwrite"
    FAIL = "fail"


class PeftOutput(Wire):
    """Adapter snapshots on the way; the final adapter is always written."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Steps between snapshots. Default: none on the way."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of every written adapter. Default: float32, as it is trained; bfloat16 halves it."""


class MergedHfOutput(Wire):
    """A merged Hugging Face checkpoint, made on CPU after training."""

    enabled: bool = False
    """Write it. Default: false."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of its weights. Default: bfloat16."""


class CheckpointOutput(Wire):
    """Resumable training state."""

    every: Duration = "2m"
    """Time between checkpoints. Default: 2m."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many to keep. Default: 2."""


class Output(Wire):
    """Where results go."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"self.path.matches(r'{STORAGE}')",
            message=STORAGE_MESSAGE,
            path=".path",
            is_text=True,
            holds=lambda self: re.fullmatch(STORAGE, self.path) is not None,
        ),
    )

    path: Location
    """gs://, s3:// or a path on a mounted PersistentVolumeClaim."""
    on_existing: OnExisting = OnExisting.RESUME
    """When the folder already holds a run: resume the same run (another is an error), overwrite, or fail.
    Default: resume."""
    peft: PeftOutput = PeftOutput()
    """Adapter snapshots on the way."""
    merged_hf: MergedHfOutput = MergedHfOutput()
    """A merged Hugging Face checkpoint."""
    checkpoint: CheckpointOutput = CheckpointOutput()
    """Resumable training state."""


class Cache(Wire):
    """Prepared rows, reference log-probabilities and compiled steps; shared by the jobs of a sweep."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"!has(self.path) || self.path.matches(r'{STORAGE}')",
            message=STORAGE_MESSAGE,
            path=".path",
            is_text=True,
            holds=lambda self: self.path is None or re.fullmatch(STORAGE, self.path) is not None,
        ),
    )

    path: Location | None = None
    """gs://, s3:// or a path on a mounted PersistentVolumeClaim. Default: the folder cache of `output.path`."""


class HuggingFace(Wire):
    """Access to gated or private models and data on the Hugging Face hub."""

    secret_ref: ObjectName
    """Secret in the job's namespace whose key HF_TOKEN holds the token."""


class CapacityType(enum.StrEnum):
    """Kinds of TPU capacity on GKE, in GKE's own words."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"
    RESERVATION = "reservation"
    FLEX_START = "flex-start"
    QUEUED = "queued"
    """Flex-start with queued provisioning."""


class Capacity(Wire):
    """What kind of capacity to ask GKE for."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.type == 'reservation') == has(self.reservation)",
            message="type: reservation needs the name of a reservation, and no other type takes one",
            path=".reservation",
            holds=lambda self: (self.type is CapacityType.RESERVATION) == (self.reservation is not None),
        ),
        Rule(
            cel="!has(self.reservationProject) || self.type == 'reservation'",
            message="belongs to type: reservation",
            path=".reservationProject",
            holds=lambda self: self.reservation_project is None or self.type is CapacityType.RESERVATION,
        ),
    )

    type: CapacityType
    """on-demand, spot, reservation, flex-start, or queued (flex-start with queued provisioning)."""
    reservation: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Name of the reservation. Needed with `type: reservation`, and only there."""
    reservation_project: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Project that owns a shared reservation. Only with `type: reservation`."""


class Tpu(Wire):
    """The TPU slice: `machineType` with `topology`, or `acceleratorType`."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.acceleratorType) || (!has(self.machineType) && !has(self.topology))",
            message="acceleratorType excludes machineType and topology; set it alone (v6e-8), or machineType "
            "with topology",
            path=".acceleratorType",
            holds=lambda self: self.accelerator_type is None or (self.machine_type is None and self.topology is None),
        ),
        Rule(
            cel="has(self.acceleratorType) || has(self.machineType) || has(self.topology)",
            message="set machineType with topology (ct5p-hightpu-4t with 2x2x1), or acceleratorType (v5p-8)",
            holds=lambda self: bool(self.accelerator_type or self.machine_type or self.topology),
        ),
        Rule(
            cel="!has(self.topology) || has(self.machineType) || has(self.acceleratorType)",
            message="topology needs machineType, for it does not say which machines: 2x4 is one host of "
            "ct6e-standard-8t (ct5lp-hightpu-8t on v5e), or two hosts of ct6e-standard-4t (ct5lp-hightpu-4t)",
            path=".topology",
            holds=lambda self: self.topology is None or bool(self.machine_type or self.accelerator_type),
        ),
    )

    machine_type: HardwareName | None = None
    """GKE machine type of a host, such as ct5p-hightpu-4t."""
    topology: Topology | None = None
    """Chips of one slice, such as 2x4 or 2x2x1; together with `machineType`."""
    accelerator_type: HardwareName | None = None
    """Short form, in place of `machineType` and `topology`: v5p-8, v6e-8, v5litepod-16. For v4, v5p and tpu7x the
    number counts TensorCores, two a chip."""
    slices: Annotated[int, Field(ge=1, le=256)] = 1
    """Slices trained on together; more than one only of several hosts each. Default: 1."""
    capacity: Capacity | None = None
    """Kind of capacity. Default: whatever the cluster has."""
    compute_class: ObjectName | None = None
    """GKE ComputeClass that provides the slice."""
    node_pool: ObjectName | None = None
    """GKE node pool to stay on."""


class Cpu(Wire):
    """CPU hosts instead of a TPU slice, to try things out."""

    hosts: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes of a slice. Default: 1."""
    slices: Annotated[int, Field(ge=1, le=16)] = 1
    """Groups of hosts. Default: 1."""
    resources: KubernetesObject | None = None
    """Requests and limits of each host."""


class Prepare(Wire):
    """The CPU job that checks and tokenises everything before a slice is held."""

    resources: KubernetesObject | None = None
    """Requests and limits."""
    node_selector: StringMap = Field(default_factory=dict)
    """Nodes to run on."""
    tolerations: Annotated[tuple[KubernetesObject, ...], Field(max_length=32)] = ()
    """Taints to tolerate."""
    timeout: Duration = "2h"
    """Longest time it may run. Default: 2h."""


class RunPolicy(Wire):
    """When to run, wait, restart and stop."""

    suspend: bool = False
    """Hold no slice; a running job saves and stops, and goes on from there when false again. Default: false."""
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 5
    """Restarts after crashes; preemptions do not count. Default: 5."""
    startup_timeout: Duration = "30m"
    """Longest time from the whole slice being scheduled to the first step. Default: 30m."""
    active_deadline: Duration = "24h"
    """Longest time the slice may be held, pauses not counted. Default: 24h."""
    queue_timeout: Duration | None = None
    """Longest wait for capacity. Default: no limit."""
    ttl_after_finished: Duration | None = None
    """Delete the job so long after it finished. Default: it stays. What it wrote always stays."""
    priority_class_name: ObjectName | None = None
    """Pod priority of slice, preparation and export."""


class PodTemplate(Wire):
    """Additions to the pods of prepare, slice and export. Kubernetes' own types, checked when the pods are built."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Trainer image. Default: the operator's own version of it."""
    image_pull_secrets: Annotated[tuple[KubernetesObject, ...], Field(max_length=16)] = ()
    """Secrets to pull it with: [{name: …}]."""
    service_account_name: ObjectName | None = None
    """Service account of the pods; on GKE, the one with access to the bucket. Default: default."""
    env: Annotated[tuple[KubernetesObject, ...], Field(max_length=64)] = ()
    """Further environment variables of the trainer."""
    env_from: Annotated[tuple[KubernetesObject, ...], Field(max_length=16)] = ()
    """Further sources of environment variables."""
    volumes: Annotated[tuple[KubernetesObject, ...], Field(max_length=32)] = ()
    """Volumes, such as the PersistentVolumeClaim of `output.path`."""
    volume_mounts: Annotated[tuple[KubernetesObject, ...], Field(max_length=32)] = ()
    """Where the trainer sees them, the same in every phase."""
    resources: KubernetesObject | None = None
    """Requests and limits of the slice's hosts; google.com/tpu is set from `tpu`."""
    labels: StringMap = Field(default_factory=dict)
    """Further labels."""
    annotations: StringMap = Field(default_factory=dict)
    """Further annotations."""
    node_selector: StringMap = Field(default_factory=dict)
    """Further node labels that the slice's hosts need."""
    tolerations: Annotated[tuple[KubernetesObject, ...], Field(max_length=32)] = ()
    """Further taints that the slice tolerates."""


class Guidance(enum.StrEnum):
    """Whether the guide's hard limits refuse a job or only advise."""

    ENFORCE = "enforce"
    IGNORE = "ignore"


QueueName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
ManagedBy = Annotated[str, Field(min_length=1, max_length=63)]
