from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_api.protocol import Checkpoint
from lora_dpo_trainer import checkpoint, errors, identity, storage


@pytest.fixture
def owner(make_config: Callable[..., TrainerConfig]) -> identity.RunIdentity:
    return identity.of(make_config(run_id="r"), data="d", base="b", total_steps=10)


def state(value: float) -> dict[str, Any]:
    return {
        "adapter": {"A": jnp.full((2, 3), float(value)), "B": jnp.full((3, 2), float(value), jnp.bfloat16)},
        "step": jnp.asarray(int(value), jnp.int32),
        "key": jax.random.key(int(value)),
    }


def save(
    output: str,
    owner: identity.RunIdentity,
    *steps: int,
    keep: int = 2,
    leads: bool = True,
    best: int | None = None,
) -> list[Checkpoint]:
    saved: list[Checkpoint] = []
    writer = checkpoint.Writer(output, owner, keep=keep, leads=leads, on_saved=saved.append)
    for step in steps:
        writer.save(step, state(step), {"evaluated_step": step} if best is None else {checkpoint.BEST_STEP: best})
    writer.wait()
    return saved


def state_file(output: str, step: int) -> str:
    folder = f"{output}/checkpoints/{checkpoint.name_of(step)}"
    (name,) = (name for name in storage.children(folder) if name != checkpoint.MANIFEST)
    return f"{folder}/{name}"


def assert_equal(first: Any, second: Any) -> None:
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert left.dtype == right.dtype
        if jax.dtypes.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def test_a_state_comes_back_bit_for_bit(memory: str, owner: identity.RunIdentity) -> None:
    (saved,) = save(memory, owner, 7)
    restored = checkpoint.restore(memory, state(0), owner)
    assert restored is not None
    assert (restored.step, restored.notes) == (7, {"evaluated_step": 7})
    assert restored.saved == saved
    assert_equal(restored.state, state(7))


def test_an_empty_output_has_nothing_to_restore(memory: str, owner: identity.RunIdentity) -> None:
    assert checkpoint.newest(memory) is None
    assert checkpoint.restore(memory, state(0), owner) is None


def test_only_the_newest_are_kept_and_each_is_announced(memory: str, owner: identity.RunIdentity) -> None:
    saved = save(memory, owner, 1, 2, 3)
    assert storage.children(f"{memory}/checkpoints") == ("step-00000002", "step-00000003")
    assert [item.step for item in saved] == [1, 2, 3]
    assert checkpoint.newest(memory) == 3


def test_an_incomplete_checkpoint_is_ignored(memory: str, owner: identity.RunIdentity) -> None:
    save(memory, owner, 1, 2)
    storage.delete(f"{memory}/checkpoints/step-00000002/manifest.json")
    restored = checkpoint.restore(memory, state(0), owner)
    assert checkpoint.newest(memory) == 1
    assert restored is not None
    assert restored.step == 1


def test_a_damaged_checkpoint_gives_way_to_an_older_one(memory: str, owner: identity.RunIdentity) -> None:
    save(memory, owner, 1, 2)
    storage.write_bytes(state_file(memory, 2), b"damaged")
    restored = checkpoint.restore(memory, state(0), owner)
    assert restored is not None
    assert restored.step == 1


@pytest.mark.parametrize("content", [b"", b"{", b'{"format"'])
def test_a_damaged_manifest_gives_way_to_an_older_one(memory: str, owner: identity.RunIdentity, content: bytes) -> None:
    save(memory, owner, 1, 2)
    storage.write_bytes(f"{memory}/checkpoints/step-00000002/manifest.json", content)
    restored = checkpoint.restore(memory, state(0), owner)
    assert restored is not None
    assert restored.step == 1


def test_a_lost_state_gives_way_to_an_older_one(memory: str, owner: identity.RunIdentity) -> None:
    save(memory, owner, 1, 2)
    storage.delete(state_file(memory, 2))
    restored = checkpoint.restore(memory, state(0), owner)
    assert restored is not None
    assert restored.step == 1


def test_a_checkpoint_of_another_format_is_refused_not_passed_over(memory: str, owner: identity.RunIdentity) -> None:
    save(memory, owner, 1)
    storage.write_json(f"{memory}/checkpoints/step-00000001/manifest.json", {"format": 1})
    with pytest.raises(errors.OutputOccupied, match="is of format 1; this trainer reads 3"):
        checkpoint.restore(memory, state(0), owner)


def test_the_best_evaluations_checkpoint_stays(memory: str, owner: identity.RunIdentity) -> None:
    save(memory, owner, 1, 2, 3, 4, keep=1, best=2)
    assert storage.children(f"{memory}/checkpoints") == ("step-00000002", "step-00000004")


def test_a_torn_checkpoint_does_not_count_among_those_kept(memory: str, owner: identity.RunIdentity) -> None:
    save(memory, owner, 6)
    storage.write_bytes(f"{memory}/checkpoints/step-00000010/state-0.safetensors", b"torn")
    save(memory, owner, 8, keep=1)
    assert storage.children(f"{memory}/checkpoints") == ("step-00000008",)
    assert checkpoint.newest(memory) == 8


def test_a_checkpoint_written_again_replaces_the_one_before(memory: str, owner: identity.RunIdentity) -> None:
    save(memory, owner, 6)
    before = state_file(memory, 6)
    writer = checkpoint.Writer(memory, owner, keep=1, leads=True, on_saved=lambda saved: None)
    writer.save(6, state(7), {})
    writer.wait()
    assert state_file(memory, 6) != before
    restored = checkpoint.restore(memory, state(0), owner)
    assert restored is not None
    assert_equal(restored.state, state(7))


def test_only_the_leader_writes(memory: str, owner: identity.RunIdentity) -> None:
    assert save(memory, owner, 1, leads=False) == []
    assert storage.children(memory) == ()


@pytest.mark.parametrize(
    ("changes", "settings", "difference"),
    [
        ({"data": "x"}, {}, "data "),
        ({"base": "x"}, {}, "initialize_from_hf has other weights"),
        ({}, {"beta": 0.5}, "beta is 0.5 here and 0.1 there"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_the_difference(
    memory: str,
    owner: identity.RunIdentity,
    make_config: Callable[..., TrainerConfig],
    changes: dict[str, str],
    settings: dict[str, Any],
    difference: str,
) -> None:
    save(memory, owner, 1)
    mine = {"data": "d", "base": "b"} | changes
    other = identity.of(make_config(run_id="r", **settings), total_steps=10, **mine)
    with pytest.raises(errors.OutputOccupied, match=f"step-00000001 belongs to another run: {difference}"):
        checkpoint.restore(memory, state(0), other)


def test_a_state_of_another_shape_is_refused(memory: str, owner: identity.RunIdentity) -> None:
    save(memory, owner, 1)
    other = state(0)
    other["adapter"]["A"] = jnp.zeros((4, 3))
    with pytest.raises(errors.OutputOccupied, match=r"float32\[2, 3\] in the checkpoint and float32\[4, 3\] here"):
        checkpoint.restore(memory, other, owner)
