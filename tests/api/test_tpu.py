from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import tpu
from lora_dpo_api.errors import SpecError
from lora_dpo_api.tpu import TpuSlice


def resolve(
    machine_type: str | None = None, topology: str | None = None, accelerator_type: str | None = None, slices: int = 1
) -> TpuSlice:
    return tpu.resolve(machine_type=machine_type, topology=topology, accelerator_type=accelerator_type, slices=slices)


def test_every_documented_slice_has_its_documented_hosts_chips_and_devices(data: Path) -> None:
    with (data / "tpu_slices.csv").open() as file:
        for row in csv.DictReader(file):
            found = resolve(row["machine_type"], row["topology"])
            assert found.machine.accelerator == row["accelerator"], row
            assert (found.chips, found.hosts, found.devices) == (
                int(row["chips"]),
                int(row["hosts"]),
                int(row["devices"]),
            ), row


def test_every_topology_of_the_catalogue_is_whole_hosts() -> None:
    for machine in tpu.machines():
        for topology in machine.all_topologies:
            found = TpuSlice(machine, topology, 1)
            assert machine.has(topology)
            assert found.hosts * machine.chips_per_host == found.chips


def test_v5p_stops_at_the_largest_slice_that_can_be_scheduled() -> None:
    v5p = next(machine for machine in tpu.machines() if machine.generation == "v5p")
    assert v5p.has("16x16x24")
    assert not v5p.has("16x16x32")


@pytest.mark.parametrize(
    ("accelerator_type", "machine_type", "topology", "hosts"),
    [
        ("v4-8", "ct4p-hightpu-4t", "2x2x1", 1),
        ("v5p-8", "ct5p-hightpu-4t", "2x2x1", 1),
        ("v5p-16", "ct5p-hightpu-4t", "2x2x2", 2),
        ("v5p-128", "ct5p-hightpu-4t", "4x4x4", 16),
        ("v5p-512", "ct5p-hightpu-4t", "4x8x8", 64),
        ("tpu7x-8", "tpu7x-standard-4t", "2x2x1", 1),
        ("tpu7x-128", "tpu7x-standard-4t", "4x4x4", 16),
    ],
)
def test_a_three_dimensional_type_counts_tensorcores(
    accelerator_type: str, machine_type: str, topology: str, hosts: int
) -> None:
    found = resolve(accelerator_type=accelerator_type)
    assert (found.machine.machine_type, found.topology, found.hosts) == (machine_type, topology, hosts)


@pytest.mark.parametrize(
    ("accelerator_type", "machine_type", "topology", "hosts"),
    [
        ("v6e-1", "ct6e-standard-1t", "1x1", 1),
        ("v6e-4", "ct6e-standard-4t", "2x2", 1),
        ("v6e-8", "ct6e-standard-8t", "2x4", 1),
        ("v6e-16", "ct6e-standard-4t", "4x4", 4),
        ("v5litepod-8", "ct5lp-hightpu-8t", "2x4", 1),
        ("v5e-8", "ct5lp-hightpu-8t", "2x4", 1),
        ("v5litepod-256", "ct5lp-hightpu-4t", "16x16", 64),
    ],
)
def test_a_two_dimensional_type_counts_chips_and_eight_of_them_are_one_host(
    accelerator_type: str, machine_type: str, topology: str, hosts: int
) -> None:
    found = resolve(accelerator_type=accelerator_type)
    assert (found.machine.machine_type, found.topology, found.hosts) == (machine_type, topology, hosts)


def test_two_by_four_names_its_machine_type_because_two_kinds_of_nodes_have_its_labels() -> None:
    labels = {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice", "cloud.google.com/gke-tpu-topology": "2x4"}
    for machine_type in ("ct6e-standard-4t", "ct6e-standard-8t"):
        expected = labels | {"node.kubernetes.io/instance-type": machine_type}
        assert resolve(machine_type, "2x4").node_selector == expected


def test_an_unambiguous_slice_is_selected_by_its_two_labels() -> None:
    assert resolve("ct5p-hightpu-4t", "2x2x2").node_selector == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x2",
    }


def test_a_machine_type_with_one_topology_needs_no_topology() -> None:
    assert resolve("ct6e-standard-8t").topology == "2x4"


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (
            {"machine_type": "ct5lp-hightpu-4t", "topology": "4x5"},
            "spec.tpu.topology: 4x5 is not a topology of ct5lp-hightpu-4t (v5e); "
            "allowed: 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16",
        ),
        (
            {"topology": "2x4"},
            "spec.tpu.topology: 2x4 alone does not say which machines; set spec.tpu.machineType; allowed: "
            "ct5lp-hightpu-4t (2 hosts of 4 chips), ct5lp-hightpu-8t (1 host of 8 chips), "
            "ct5l-hightpu-8t (1 host of 8 chips), ct6e-standard-4t (2 hosts of 4 chips), "
            "ct6e-standard-8t (1 host of 8 chips)",
        ),
        (
            {"machine_type": "ct6e-standard-8t", "topology": "2x4", "slices": 2},
            "spec.tpu.slices: 2 slices of one host each (ct6e-standard-8t 2x4): GKE trains over several slices only if "
            "each has several hosts; allowed: 1",
        ),
        (
            {"accelerator_type": "v5p-7"},
            "spec.tpu.acceleratorType: v5p-7 is no slice (the number counts TensorCores, two a chip); "
            "allowed: v5p-8, v5p-16, v5p-32, v5p-64, v5p-128, v5p-256, v5p-384, v5p-512",
        ),
        (
            {"accelerator_type": "h100-8"},
            "spec.tpu.acceleratorType: h100-8 is not an accelerator type; "
            "allowed: v4-N, v5litepod-N, v5p-N, v6e-N, tpu7x-N",
        ),
        ({}, "spec.tpu: names no slice; allowed: machineType with topology, acceleratorType"),
    ],
)
def test_a_slice_that_does_not_exist_is_refused_with_what_does(wanted: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=re.escape(sentence)):
        resolve(**wanted)


def test_a_mistyped_machine_type_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(SpecError, match=r"ct5p-hightpu-8t is not a TPU machine type; allowed: .*ct5p-hightpu-4t"):
        resolve("ct5p-hightpu-8t", "2x2x1")


@pytest.mark.parametrize("topology", ["0x0x0", "02x2x1", "1x2x2", "4x4x6"])
def test_a_topology_counts_only_in_its_own_spelling(topology: str) -> None:
    with pytest.raises(SpecError, match=f"{topology} is not a topology"):
        resolve("ct5p-hightpu-4t", topology)
