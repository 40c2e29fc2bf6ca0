"""Memory of host and devices; a TPU cannot exist here, so that what its devices tell is made up."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from lora_dpo_trainer import memory


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that tells of its memory, or doesn't."""

    told: dict[str, int] | None

    def memory_stats(self) -> dict[str, int] | None:
        return self.told


def test_the_fullest_device_is_told_with_what_it_can_give(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [{"bytes_in_use": used, "peak_bytes_in_use": used + 1, "bytes_limit": 100} for used in (30, 70)]
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(statistics) for statistics in told])
    found = memory.used()
    assert found.pop("memory_rss_bytes") > 1e6
    assert found == {"memory_device_bytes": 70, "memory_device_peak_bytes": 71, "memory_device_limit_bytes": 100}


def test_devices_that_do_not_tell_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None), Device(None)])
    assert set(memory.used()) == {"memory_rss_bytes"}
