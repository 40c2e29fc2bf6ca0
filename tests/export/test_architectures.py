"""Every supported model computes what transformers computes; so do its adapter in PEFT and its merged checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tiny_models

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / ".venv" / "trainer" / "bin" / "python"
PROMPT = 12

pytestmark = [
    # PEFT reads a property that transformers renames.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT cannot merge an adapted head into weights that the embedding shares. Our merged checkpoint unties them.
    pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings=True:UserWarning"),
]


def some_pairs() -> list[dict[str, object]]:
    rng = np.random.default_rng(5)
    rows = []
    for chosen, rejected in ((9, 14), (17, 6), (5, 5)):
        prompt = rng.integers(3, tiny_models.VOCAB, PROMPT).tolist()
        sides = [prompt + rng.integers(3, tiny_models.VOCAB, length).tolist() for length in (chosen, rejected)]
        rows.append({"prompt": PROMPT, "chosen": sides[0], "rejected": sides[1]})
    return rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in tiny_models.CONFIGS:
        tiny_models.save(name, root / name / "base")
        (root / name / "pairs.json").write_text(json.dumps(some_pairs()))
    words = [str(root / name) for name in tiny_models.CONFIGS]
    subprocess.run(
        [str(TRAINER), str(ROOT / "tests" / "export" / "trainer_side.py"), *words],
        check=True,
        env={"JAX_PLATFORMS": "cpu", "PATH": os.environ["PATH"]},
    )
    return root


@pytest.fixture(params=list(tiny_models.CONFIGS))
def folder(request: pytest.FixtureRequest, folders: Path) -> Path:
    return folders / str(request.param)


def token_logprobs(model: torch.nn.Module) -> list[list[np.ndarray]]:
    """Per pair and side, the log-probability of each answer token, every side alone in its row."""
    found = []
    for row in some_pairs():
        sides = []
        for side in ("chosen", "rejected"):
            ids = torch.tensor([row[side]])
            with torch.no_grad():
                logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
            sides.append(logp.gather(1, ids[0, 1:, None])[PROMPT - 1 :, 0].numpy())
        found.append(sides)
    return found


def sums(tokens: list[list[np.ndarray]]) -> np.ndarray:
    return np.array([[side.sum() for side in sides] for sides in tokens])


def assert_equal_sums(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_array_less(np.abs(ours - theirs), np.maximum(1e-4, 2e-6 * np.abs(theirs)))


def test_log_probabilities_are_those_of_transformers(folder: Path) -> None:
    theirs = token_logprobs(tiny_models.load(folder / "base"))
    ours = load_file(folder / "scores.safetensors")
    np.testing.assert_allclose(
        ours["tokens"], np.concatenate([side for sides in theirs for side in sides]), rtol=0, atol=1e-5
    )
    assert_equal_sums(ours["base"], sums(theirs))


def test_peft_computes_what_the_trainer_computed(folder: Path) -> None:
    model = peft.PeftModel.from_pretrained(tiny_models.load(folder / "base"), folder / "adapter").eval()
    ours = load_file(folder / "scores.safetensors")
    assert np.abs(ours["policy"] - ours["base"]).min() > 0.01
    assert_equal_sums(ours["policy"], sums(token_logprobs(model)))
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert set(peft.get_peft_model_state_dict(model, save_embedding_layers=False)) == set(stored)


def test_an_adapter_in_bfloat16_computes_nearly_the_same(folder: Path) -> None:
    stored = load_torch_file(folder / "adapter-bf16" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    model = peft.PeftModel.from_pretrained(tiny_models.load(folder / "base"), folder / "adapter-bf16").eval()
    ours = load_file(folder / "scores.safetensors")
    change = np.abs(ours["policy"] - ours["base"]).max()
    assert np.abs(sums(token_logprobs(model)) - ours["policy"]).max() < 0.05 * change


def test_a_merged_checkpoint_in_several_files_computes_what_the_trainer_computed(folder: Path) -> None:
    assert len(list((folder / "merged").glob("model-*.safetensors"))) > 1
    theirs = sums(token_logprobs(tiny_models.load(folder / "merged")))
    assert_equal_sums(load_file(folder / "scores.safetensors")["policy"], theirs)
