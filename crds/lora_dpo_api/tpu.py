"""The TPU catalogue: what GKE's machine types are, and what a slice of them looks like.

`tpu_machines.json` holds GKE's documented machine types. Two-dimensional generations list their topologies; the
three-dimensional ones build theirs from cubes of 4x4x4 chips, up to the largest slice that can be scheduled.

Two traps, both handled here. The number in `v5p-8` counts TensorCores (v4, v5p, tpu7x), that in `v6e-8` counts chips.
And `2x4` is one host of eight chips on one machine type and two hosts of four on another, with the same node labels.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from lora_dpo_api.errors import ABSENT, Problem, SpecError

ACCELERATOR_LABEL = "cloud.google.com/gke-tpu-accelerator"
TOPOLOGY_LABEL = "cloud.google.com/gke-tpu-topology"
MACHINE_LABEL = "node.kubernetes.io/instance-type"
CHIP_RESOURCE = "google.com/tpu"

_CUBE_CHIPS = 64
_LARGEST_SIDE = 256
_BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_SHOWN = 8

_GENERATIONS = {
    "v4": "v4",
    "v5p": "v5p",
    "v5litepod": "v5e",
    "v5e": "v5e",
    "v6e": "v6e",
    "tpu7x": "tpu7x",
    "v7x": "tpu7x",
}
"""Accelerator types' names for the generations."""

_LEGACY_ACCELERATORS = ("tpu-v5-lite-device",)
"""Never meant by a short form: only pools made for them have these."""

Sides = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """A GKE machine type with TPU chips.

    Attributes:
        accelerator: value of the node label `cloud.google.com/gke-tpu-accelerator`.
        devices_per_chip: JAX devices of one chip.
        topologies: the listed ones, or empty where they are built from cubes.
        cubes: largest slice, in cubes of 64 chips; 0 where topologies are listed.
    """

    machine_type: str
    generation: str
    accelerator: str
    chips_per_host: int
    vcpus: int
    memory_gib: int
    hbm_gib_per_chip: int
    bf16_tflops_per_chip: int
    devices_per_chip: int
    tensorcores_per_chip: int
    topologies: tuple[str, ...] = ()
    cubes: int = 0
    any_axis_order: bool = False

    def has(self, topology: str) -> bool:
        """Whether slices of this shape exist."""
        if self.topologies:
            return topology in self.topologies
        sides = _sides(topology)
        if topology != _text(sides):
            return False
        if sides in _BELOW_A_CUBE:
            return True
        return (
            len(sides) == 3
            and all(side and side % 4 == 0 and side <= _LARGEST_SIDE for side in sides)
            and math.prod(sides) <= self.cubes * _CUBE_CHIPS
            and (self.any_axis_order or list(sides) == sorted(sides))
        )

    @property
    def all_topologies(self) -> tuple[str, ...]:
        """Every topology, smallest first."""
        return self.topologies or _built(self.cubes, self.any_axis_order)

    def topology_of(self, chips: int) -> str | None:
        """The most cubic topology of so many chips: what GKE's tools take when only a count is given."""
        fitting = [topology for topology in self.all_topologies if math.prod(_sides(topology)) == chips]
        return min(fitting, key=lambda topology: (sum(_sides(topology)), _sides(topology)), default=None)


@dataclass(frozen=True, slots=True)
class TpuSlice:
    """A slice, `slices` times.

    Attributes:
        hosts: hosts of one slice.
        chips: chips of one slice.
    """

    machine: Machine
    topology: str
    slices: int

    @property
    def chips(self) -> int:
        """Chips of one slice."""
        return math.prod(_sides(self.topology))

    @property
    def hosts(self) -> int:
        """Hosts of one slice."""
        return self.chips // self.machine.chips_per_host

    @property
    def devices(self) -> int:
        """JAX devices of all slices together."""
        return self.slices * self.chips * self.machine.devices_per_chip

    @property
    def node_selector(self) -> dict[str, str]:
        """Node labels of the slice's hosts.

        The machine type is named only where another one has the same two labels.
        """
        labels = {ACCELERATOR_LABEL: self.machine.accelerator, TOPOLOGY_LABEL: self.topology}
        twins = [m for m in machines() if m.accelerator == self.machine.accelerator and m.has(self.topology)]
        return labels | ({MACHINE_LABEL: self.machine.machine_type} if len(twins) > 1 else {})

    @property
    def description(self) -> str:
        """Such as `v5p 2x2x1` or `v6e 4x4 x2`."""
        return f"{self.machine.generation} {self.topology}" + (f" x{self.slices}" if self.slices > 1 else "")


@functools.cache
def machines() -> tuple[Machine, ...]:
    """The catalogue."""
    text = resources.files("lora_dpo_api").joinpath("tpu_machines.json").read_text(encoding="utf-8")
    return tuple(Machine(**row | {"topologies": tuple(row.get("topologies", ()))}) for row in json.loads(text))


def resolve(
    *,
    machine_type: str | None,
    topology: str | None,
    accelerator_type: str | None,
    slices: int = 1,
    path: str = "spec.tpu",
) -> TpuSlice:
    """The slice that a user means.

    Raises:
        SpecError: there is no such slice, or more than one; it lists the nearest that exist.
    """
    if accelerator_type is not None:
        if machine_type is not None or topology is not None:
            raise _refused(f"{path}.acceleratorType", accelerator_type, "excludes machineType and topology")
        machine, topology = _from_accelerator_type(accelerator_type, path)
    else:
        machine, topology = _from_machine(machine_type, topology, path)
    found = TpuSlice(machine, topology, slices)
    if slices > 1 and found.hosts == 1:
        raise _refused(
            f"{path}.slices",
            slices,
            f"slices of one host each ({machine.machine_type} {topology}): GKE trains over several slices only if each "
            "has several hosts",
            ["1", *(f"a larger topology: {other}" for other in _larger(machine))],
        )
    return found


def _from_machine(machine_type: str | None, topology: str | None, path: str) -> tuple[Machine, str]:
    if machine_type is None:
        if topology is None:
            raise _refused(path, ABSENT, "names no slice", ["machineType with topology", "acceleratorType"])
        readings = [_reading(machine, topology) for machine in machines() if machine.has(topology)]
        raise _refused(
            f"{path}.topology", topology, "alone does not say which machines; set spec.tpu.machineType", readings
        )
    machine = next((machine for machine in machines() if machine.machine_type == machine_type), None)
    if machine is None:
        known = [machine.machine_type for machine in machines()]
        raise _refused(f"{path}.machineType", machine_type, "is not a TPU machine type", _closest(machine_type, known))
    if topology is None:
        if len(machine.topologies) == 1:
            return machine, machine.topologies[0]
        raise _refused(f"{path}.topology", ABSENT, f"is required with {machine_type}", _first(machine.all_topologies))
    if not machine.has(topology):
        raise _refused(
            f"{path}.topology",
            topology,
            f"is not a topology of {machine_type} ({machine.generation})",
            _nearest_topologies(machine, topology),
        )
    return machine, topology


def _from_accelerator_type(accelerator_type: str, path: str) -> tuple[Machine, str]:
    field = f"{path}.acceleratorType"
    parts = re.fullmatch(r"([a-z0-9]+)-([0-9]{1,5})", accelerator_type)
    generation = _GENERATIONS.get(parts[1]) if parts else None
    if parts is None or generation is None:
        forms = ["v4-N", "v5litepod-N", "v5p-N", "v6e-N", "tpu7x-N"]
        raise _refused(field, accelerator_type, "is not an accelerator type", forms)
    family = [m for m in machines() if m.generation == generation and m.accelerator not in _LEGACY_ACCELERATORS]
    cores = family[0].tensorcores_per_chip
    chips, odd = divmod(int(parts[2]), cores)
    # One host with all the chips, where there is one; else hosts of four.
    for machine in sorted(family, key=lambda m: (m.chips_per_host != chips, m.chips_per_host != 4)):
        topology = None if odd else machine.topology_of(chips)
        if topology is not None:
            return machine, topology
    sizes = sorted({math.prod(_sides(topology)) * cores for machine in family for topology in machine.all_topologies})
    closest = sorted(sorted(sizes, key=lambda size: abs(size - int(parts[2])))[:_SHOWN])
    unit = "TensorCores, two a chip" if cores == 2 else "chips"
    raise _refused(
        field, accelerator_type, f"is no slice (the number counts {unit})", [f"{parts[1]}-{size}" for size in closest]
    )


def _reading(machine: Machine, topology: str) -> str:
    hosts = math.prod(_sides(topology)) // machine.chips_per_host
    return f"{machine.machine_type} ({hosts} host{'s' * (hosts > 1)} of {machine.chips_per_host} chips)"


def _refused(path: str, value: object, reason: str, allowed: Iterable[str] = ()) -> SpecError:
    return SpecError([Problem(path, reason, tuple(allowed), value)])


def _sides(topology: str) -> Sides:
    return tuple(int(side) for side in topology.split("x"))


def _text(sides: Sides) -> str:
    return "x".join(map(str, sides))


def _larger(machine: Machine) -> list[str]:
    return [t for t in machine.all_topologies if math.prod(_sides(t)) > machine.chips_per_host][:3]


def _nearest_topologies(machine: Machine, topology: str) -> list[str]:
    chips = math.prod(_sides(topology))
    found = sorted(machine.all_topologies, key=lambda t: abs(math.prod(_sides(t)) - chips))[:_SHOWN]
    return sorted(found, key=_sides)


def _closest(word: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(word, known, n=_SHOWN, cutoff=0.5) or known


def _first(topologies: tuple[str, ...]) -> list[str]:
    return [*topologies[:_SHOWN], *(["…"] if len(topologies) > _SHOWN else [])]


@functools.cache
def _built(cubes: int, any_axis_order: bool) -> tuple[str, ...]:
    found = set(_BELOW_A_CUBE)
    longest = min(cubes, _LARGEST_SIDE // 4)
    for a in range(1, longest + 1):
        for b in range(1 if any_axis_order else a, longest + 1):
            for c in range(1 if any_axis_order else b, min(longest, cubes // (a * b)) + 1):
                found.add((4 * a, 4 * b, 4 * c))
    return tuple(_text(sides) for sides in sorted(found, key=lambda sides: (math.prod(sides), sides)))
