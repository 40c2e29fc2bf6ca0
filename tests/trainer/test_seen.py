from __future__ import annotations

import random

import pytest

from lora_dpo_trainer import seen


def test_a_hash_is_new_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_FRESH", 7)
    values = [random.Random(0).getrandbits(64) for _ in range(50)] + [0, 2**64 - 1]
    known = seen.Seen()
    assert [known.add(value) for value in values] == [values.index(value) == at for at, value in enumerate(values)]
    assert not any(known.add(value) for value in values)
    assert len(known) == len(set(values))
    assert all(value in known for value in values)
    assert 12345 not in known
