from __future__ import annotations

import pytest

from lora_dpo_trainer import errors
from lora_dpo_trainer.distributed import Placement


def test_outside_kubernetes_there_is_one_process(environment: pytest.MonkeyPatch) -> None:
    assert Placement.from_environment() == Placement()
    assert Placement().processes == 1


def test_the_operators_variables_place_a_host_in_the_gang(environment: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LORADPO_PLATFORM": "cpu",
        "LORADPO_SLICES": "2",
        "LORADPO_HOSTS_PER_SLICE": "3",
        "LORADPO_SLICE_INDEX": "1",
        "JOB_COMPLETION_INDEX": "2",
        "LORADPO_COORDINATOR": "job-slice-0-0.job:8476",
        "LORADPO_RESTART_ATTEMPT": "4",
    }.items():
        environment.setenv(name, value)
    placement = Placement.from_environment()
    assert (placement.processes, placement.process_id, placement.attempt) == (6, 5, 4)


def test_several_cpu_hosts_need_a_coordinator(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORADPO_HOSTS_PER_SLICE", "2")
    with pytest.raises(errors.WrongEnvironment, match="2 processes and no LORADPO_COORDINATOR"):
        Placement.from_environment()


def test_a_number_that_is_none_names_its_variable(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORADPO_SLICES", "two")
    with pytest.raises(errors.WrongEnvironment, match=r"LORADPO_SLICES is 'two'"):
        Placement.from_environment()
