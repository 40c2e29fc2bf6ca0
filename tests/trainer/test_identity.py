from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import errors, identity, storage

type MakeConfig = Callable[..., TrainerConfig]


def of(config: TrainerConfig, **changes: Any) -> identity.RunIdentity:
    return identity.of(config, **({"data": "d" * 32, "base": "b" * 64, "total_steps": 4} | changes))


def output(folder: str, on_existing: str = "resume") -> dict[str, str]:
    return {"path": folder, "on_existing": on_existing}


def test_a_fresh_output_is_claimed(make_config: MakeConfig, memory: str) -> None:
    config = make_config(output=output(memory))
    assert identity.read(memory) is None
    assert identity.claim(config, of(config)) is False
    assert identity.read(memory) == of(config)


def test_the_same_run_goes_on(make_config: MakeConfig, memory: str) -> None:
    config = make_config(output=output(memory))
    identity.claim(config, of(config))
    assert identity.claim(config, of(config)) is True


def test_where_results_go_and_how_often_they_are_evaluated_is_not_identity(make_config: MakeConfig) -> None:
    first = of(make_config(run_id="r"))
    second = of(make_config(run_id="r", eval={"every_steps": 1}, cache={"path": "/elsewhere"}))
    assert first.difference(second) is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"beta": 0.5}, "beta is 0.5 here and 0.1 there"),
        ({"lora": {"r": 4}}, r"lora\.r is 4 here and 8 there"),
        ({"optimizer": {"learning_rate": 1e-6}}, r"optimizer\.learning_rate"),
    ],
)
def test_another_run_is_refused_with_the_field_that_differs(
    make_config: MakeConfig, memory: str, changes: dict[str, Any], field: str
) -> None:
    config = make_config(output=output(memory))
    identity.claim(config, of(config))
    other = make_config(output=output(memory), **changes)
    with pytest.raises(errors.OutputOccupied, match=field):
        identity.claim(other, of(other))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"data": "x"}, "data"), ({"base": "x"}, "initialize_from_hf"), ({"total_steps": 5}, "number of steps")],
)
def test_other_rows_weights_or_length_are_another_run(
    make_config: MakeConfig, changes: dict[str, Any], words: str
) -> None:
    config = make_config(run_id="r")
    difference = of(config, **changes).difference(of(config))
    assert difference is not None
    assert words in difference


def test_overwrite_removes_the_other_run_and_nothing_else(make_config: MakeConfig, memory: str) -> None:
    config = make_config(output=output(memory))
    identity.claim(config, of(config))
    for name in ("checkpoints/step-00000001/manifest.json", "adapter/adapter_config.json", "mine.txt"):
        storage.write_bytes(storage.join(memory, name), b"")
    other = make_config(output=output(memory, "overwrite"), beta=0.5)
    assert identity.claim(other, of(other)) is False
    assert storage.children(memory) == ("mine.txt", "run.json")


def test_fail_refuses_what_exists_but_not_a_named_run_of_its_own(make_config: MakeConfig, memory: str) -> None:
    nameless = make_config(output=output(memory, "fail"))
    identity.claim(nameless, of(nameless))
    with pytest.raises(errors.OutputOccupied, match="exists already"):
        identity.claim(nameless, of(nameless))
    storage.delete(storage.join(memory, "run.json"))
    named = make_config(output=output(memory, "fail"), run_id="team/job")
    identity.claim(named, of(named))
    assert identity.claim(named, of(named)) is True


def test_what_is_no_identity_is_not_overwritten_by_accident(make_config: MakeConfig, memory: str) -> None:
    storage.write_bytes(storage.join(memory, "run.json"), b'{"other": 1}')
    config = make_config(output=output(memory))
    with pytest.raises(errors.OutputOccupied, match="is not a run's identity"):
        identity.claim(config, of(config))
