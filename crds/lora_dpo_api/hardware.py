"""The machines of a job, whether TPU slices or CPU hosts, in the shape that manifests are built from."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from lora_dpo_api import tpu
from lora_dpo_api.spec_running import Cpu, Tpu
from lora_dpo_api.status import SliceStatus


class Platform(enum.StrEnum):
    """What the trainer must find; the value of `LORADPO_PLATFORM`."""

    TPU = "tpu"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Hardware:
    """`slices` groups of `hosts` machines.

    Attributes:
        slices: replicas of the replicated job.
        hosts: hosts of one slice.
        chips: TPU chips of one slice; 0 on CPU.
        chips_per_host: value of the resource google.com/tpu; 0 on CPU.
        devices: JAX devices of all slices together; 0 on CPU, where nothing is promised.
        node_selector: node labels of the hosts.
        description: such as `v5p 2x2x1` or `cpu x2`.
        tpu: the catalogue's entry; absent on CPU.
    """

    platform: Platform
    slices: int
    hosts: int
    description: str
    chips: int = 0
    chips_per_host: int = 0
    devices: int = 0
    node_selector: dict[str, str] = field(default_factory=dict)
    tpu: tpu.TpuSlice | None = None

    @property
    def multi_host(self) -> bool:
        """Whether one slice has several hosts."""
        return self.hosts > 1

    @property
    def processes(self) -> int:
        """Trainer processes of all slices together."""
        return self.slices * self.hosts

    @property
    def status(self) -> SliceStatus:
        """What the job's status says about its machines before any is ready."""
        return SliceStatus(
            description=self.description,
            slices=self.slices,
            hosts=self.processes,
            chips=self.slices * self.chips,
        )


def of_tpu(spec: Tpu) -> Hardware:
    """The machines that `spec.tpu` means.

    Raises:
        SpecError: no such slice exists.
    """
    found = tpu.resolve(
        machine_type=spec.machine_type,
        topology=spec.topology,
        accelerator_type=spec.accelerator_type,
        slices=spec.slices,
    )
    return Hardware(
        platform=Platform.TPU,
        slices=found.slices,
        hosts=found.hosts,
        description=found.description,
        chips=found.chips,
        chips_per_host=found.machine.chips_per_host,
        devices=found.devices,
        node_selector=found.node_selector,
        tpu=found,
    )


def of_cpu(spec: Cpu) -> Hardware:
    """The machines that `spec.cpu` means."""
    hosts = spec.hosts * spec.slices
    return Hardware(
        platform=Platform.CPU,
        slices=spec.slices,
        hosts=spec.hosts,
        description="cpu" + (f" x{hosts}" if hosts > 1 else ""),
    )
