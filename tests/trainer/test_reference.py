from pathlib import Path

import numpy as np
import pytest

from lora_dpo_trainer import errors, model, parity, reference, step, storage
from lora_dpo_trainer.pairs import TokenizedPair
from lora_dpo_trainer.reference import ReferenceKey, Scorer

CASE = parity.Case(Path(__file__).parents[1] / "data" / "parity" / "llama-r8")
KEY = ReferenceKey("base", "pairs", "float32")


@pytest.fixture(scope="module")
def pairs() -> list[TokenizedPair]:
    return CASE.recorded_pairs()[:10]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(step.make_logprob_step(model.load_base(str(CASE.folder / "base"))), pairs_per_batch=4)


def test_a_split_is_scored_in_its_own_order(pairs: list[TokenizedPair], scorer: Scorer) -> None:
    expected = np.array(CASE.expected["reference_logps"])[:10]
    np.testing.assert_allclose(reference.compute(pairs, scorer), expected, atol=1e-3)


def test_another_job_takes_what_is_kept(memory: str, pairs: list[TokenizedPair], scorer: Scorer) -> None:
    first = reference.find_or_compute(memory, KEY, {"train": pairs}, scorer)
    asked: list[int] = []
    second = reference.find_or_compute(memory, KEY, {"train": pairs}, scorer, watch=asked.append)
    np.testing.assert_array_equal(first["train"], second["train"])
    assert not asked


def test_wrong_values_are_found_by_the_sample_and_replaced(
    memory: str, pairs: list[TokenizedPair], scorer: Scorer
) -> None:
    right = reference.compute(pairs, scorer)
    reference.write(memory, KEY, {"train": right - 1})
    found = reference.find_or_compute(memory, KEY, {"train": pairs}, scorer)
    np.testing.assert_allclose(found["train"], right, rtol=1e-6)
    stored = reference.find(memory, KEY)
    assert stored is not None
    np.testing.assert_allclose(stored["train"], right, rtol=1e-6)


def test_a_damaged_file_is_found_and_computed_again(memory: str, pairs: list[TokenizedPair], scorer: Scorer) -> None:
    right = reference.find_or_compute(memory, KEY, {"train": pairs}, scorer)
    file = storage.join(reference.folder(memory, KEY), "reference.safetensors")
    content = bytearray(storage.read_bytes(file))
    content[-1] ^= 0x40  # the value of a single pair, which a sample may miss
    storage.write_bytes(file, bytes(content))
    assert reference.find(memory, KEY) is None
    asked: list[int] = []
    found = reference.find_or_compute(memory, KEY, {"train": pairs}, scorer, watch=asked.append)
    np.testing.assert_array_equal(found["train"], right["train"])
    assert asked, "nothing was computed"


def test_without_a_manifest_there_is_nothing(memory: str) -> None:
    reference.write(memory, KEY, {"train": np.zeros((3, 2), np.float32)})
    storage.delete(storage.join(reference.folder(memory, KEY), "manifest.json"))
    assert reference.find(memory, KEY) is None


def test_every_part_of_the_key_has_a_folder_of_its_own(memory: str) -> None:
    keys = [KEY, ReferenceKey("other", "pairs", "float32"), ReferenceKey("base", "pairs", "bfloat16")]
    keys.append(ReferenceKey("base", "pairs", "float32", "adapter"))
    assert len({reference.folder(memory, key) for key in keys}) == 4


def test_non_finite_values_are_never_kept(memory: str) -> None:
    with pytest.raises(errors.NonFinite, match="train pair 1") as found:
        reference.write(memory, KEY, {"train": np.array([[0.0, 0.0], [np.nan, 0.0]])})
    assert "weights of initialize_from_hf" in str(found.value.hint)
    assert reference.find(memory, KEY) is None
