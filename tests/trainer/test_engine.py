"""What an engine asks of memory outside its steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import engine, identity, layout, prepare, prepared


@pytest.mark.parametrize(("group_tokens", "at_once"), [(layout.GROUP_TOKENS, 8), (1, 1)])
def test_a_forward_outside_a_step_has_no_more_pairs_than_a_microbatch(
    make_config: Callable[..., TrainerConfig],
    preference_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group_tokens: int,
    at_once: int,
) -> None:
    monkeypatch.setattr(layout, "GROUP_TOKENS", group_tokens)
    config = make_config(
        data={"components": {"prefs": {"source": {"type": "url", "train_urls": [str(preference_file)]}}}},
        trainer={"train_batch_size": 8, "num_train_steps": 2, "mp": "p=f32,c=f32"},
        validation_split_fraction=0.3,
        output={"path": str(tmp_path / "out")},
    )
    prepare.run(config)
    owner = identity.read(config.output.path)
    assert owner is not None
    machine = engine.build(config, prepared.load(config.cache_path, owner.data), owner)
    assert machine.validation_pairs >= 8
    batches = list(machine.validation_batches(max_pairs=8))
    assert [one.arrays.valid.size for one in batches] == [at_once] * (8 // at_once)
    assert machine.reference_scorer().pairs_per_batch == at_once
