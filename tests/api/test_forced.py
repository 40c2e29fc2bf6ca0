from __future__ import annotations

import pytest

from lora_dpo_api.config_models import AInit
from lora_dpo_api.forced import ZERO_INIT_B_FORCED, lora_start


@pytest.mark.parametrize("a_init_mode", [None, AInit.RANDOM])
def test_b_starts_at_zero_without_a_word_when_it_was_asked_for(a_init_mode: AInit | None) -> None:
    start = lora_start(True, a_init_mode, "lora.zero_init_b")
    assert (start.zero_init_b, start.a_init_mode, start.notice) == (True, AInit.RANDOM, None)


@pytest.mark.parametrize("a_init_mode", [None, AInit.RANDOM])
def test_a_random_b_is_forced_to_zero_with_a_warning(a_init_mode: AInit | None) -> None:
    start = lora_start(False, a_init_mode, "lora.zero_init_b")
    assert (start.zero_init_b, start.a_init_mode) == (True, AInit.RANDOM)
    assert start.notice is not None
    assert start.notice.code == ZERO_INIT_B_FORCED
    assert str(start.notice).startswith("lora.zero_init_b: false is forced to true: ")


@pytest.mark.parametrize("zero_init_b", [True, False])
def test_only_a_zero_by_name_leaves_b_random(zero_init_b: bool) -> None:
    start = lora_start(zero_init_b, AInit.ZERO, "lora.zero_init_b")
    assert (start.zero_init_b, start.a_init_mode, start.notice) == (False, AInit.ZERO, None)
