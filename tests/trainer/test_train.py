"""What the train phase makes of the errors that JAX raises."""

from __future__ import annotations

import jax
import pytest

from lora_dpo_api import config_file
from lora_dpo_api.protocol import ExitCode
from lora_dpo_trainer import distributed, errors, preemption, train

CONFIG = """
data: {components: {prefs: {source: {type: url, train_urls: [rows.jsonl]}}}}
initialize_from_hf: base
output: {path: out}
"""
EXHAUSTED = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.1G of 31.25G hbm.\nmore lines"
GONE = "UNAVAILABLE: Connection reset by peer"


def raised(message: str, processes: int, monkeypatch: pytest.MonkeyPatch) -> BaseException:
    def run(*_: object) -> None:
        raise jax.errors.JaxRuntimeError(message)

    environment = {"LORADPO_SLICES": "1", "LORADPO_HOSTS_PER_SLICE": str(processes), "LORADPO_COORDINATOR": "host:1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "start", lambda placement: None)
    monkeypatch.setattr(train, "_run", run)
    notice = preemption.Notice(lambda error: None)
    with pytest.raises((errors.TrainerError, jax.errors.JaxRuntimeError)) as found:
        train.run(config_file.load(CONFIG).config, notice)
    return found.value


@pytest.mark.parametrize("processes", [1, 4])
def test_too_little_device_memory_is_a_fault_of_the_configuration(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = raised(EXHAUSTED, processes, monkeypatch)
    assert isinstance(error, errors.OutOfDeviceMemory)
    assert error.exit_code is ExitCode.CONFIG
    assert "Used 40.1G of 31.25G hbm" in error.message
    assert "\n" not in error.message


def test_a_host_that_is_gone_is_told_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(raised(GONE, 4, monkeypatch), errors.Unreachable)
    assert isinstance(raised(GONE, 1, monkeypatch), jax.errors.JaxRuntimeError)
