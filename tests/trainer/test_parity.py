from pathlib import Path

import pytest

from lora_dpo_trainer import parity

CASES = Path(__file__).parents[1] / "data" / "parity"


@pytest.mark.parametrize("name", sorted(folder.name for folder in CASES.iterdir()))
def test_training_gives_what_trl_and_peft_give(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = parity.main([str(CASES / name)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "FAIL" not in printed
    for quantity in ("tokens and masks", "reference log-probabilities", "dpo_loss", "grad_norm", "final adapter"):
        assert quantity in printed
