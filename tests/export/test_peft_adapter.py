"""PEFT loads an adapter that the trainer wrote, and computes with it what the trainer computed."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / ".venv" / "trainer" / "bin" / "python"
CASES = ROOT / "tests" / "data" / "parity"

# PEFT reads a property that transformers renames.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WRITE = """
import json, sys
import jax, numpy as np
from lora_dpo_api.config_file import LoraConfig
from lora_dpo_trainer import batch, lora, model, packing, parity, peft_io, step
from safetensors.numpy import save_file

base_folder, out, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
base = model.load_base(base_folder)
config = LoraConfig(**settings)
plan = lora.resolve(base.linears, config)
keys = iter(jax.random.split(jax.random.key(3), 1000))
adapter = lora.init(plan, config, next(keys))
adapter = jax.tree.map(lambda x: 0.1 * jax.random.normal(next(keys), x.shape), adapter)
adapter = {target.linear.path: lora.trim(target, adapter[target.linear.path]) for target in plan.targets}
peft_io.save(out, adapter, plan, config, base_folder, "main")
from pathlib import Path
pairs = parity.Case(Path(base_folder).parent).recorded_pairs()[:4]
lengths = packing.PairLengths.of(pairs)
packed = batch.build(pairs, packing.BatchPlan.make(lengths, 4, shuffle=False).shapes[-1])
found = batch.in_order(np.asarray(step.make_logprob_step(base, plan)(adapter, packed)), packed)
save_file({"logps": np.stack([found[key] for key in range(4)])}, out + "/expected.safetensors")
"""


@pytest.fixture(
    scope="module",
    params=[
        {"r": 4, "alpha": 8},
        {"r": 4, "rslora": True, "exclude_modules": []},
        {"r": 4, "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6}, "alpha_pattern": {"up_proj": 6}},
        {"r": 4, "zero_init_b": False, "a_init_mode": "zero", "target_modules": ".*\\.(q_proj|up_proj)"},
    ],
    ids=["linear", "lm_head-rslora", "patterns", "a-zero-regex"],
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    words = [str(CASES / "llama-r8" / "base"), str(folder), json.dumps(request.param)]
    subprocess.run([str(TRAINER), "-c", WRITE, *words], check=True, env={"JAX_PLATFORMS": "cpu"}, capture_output=True)
    return folder


def answer_logprob(model: torch.nn.Module, side: dict[str, list[int]]) -> float:
    ids = torch.tensor([side["input_ids"]])
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
    picked = logp.gather(1, ids[0, 1:, None])[:, 0]
    return float(picked[torch.tensor(side["loss_mask"][1:], dtype=torch.bool)].sum())


def test_peft_computes_what_the_trainer_computed(written: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(CASES / "llama-r8" / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, written).eval()
    rows = json.loads((CASES / "llama-r8" / "tokens.json").read_text())[:4]
    theirs = [[answer_logprob(model, row[side]) for side in ("chosen", "rejected")] for row in rows]
    np.testing.assert_allclose(load_file(written / "expected.safetensors")["logps"], theirs, rtol=1e-5, atol=1e-4)


def test_every_tensor_lands_in_the_model(written: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(CASES / "llama-r8" / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, written)
    loaded = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = load_file(written / "adapter_model.safetensors")
    assert set(loaded) == set(stored)
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.numpy(), stored[name])


def test_the_configuration_holds_what_readers_declare(written: Path) -> None:
    config = json.loads((written / "adapter_config.json").read_text())
    assert isinstance(config["lora_alpha"], int)
    assert isinstance(config["target_modules"], list)
    assert config["bias"] == "none"
    assert config["peft_type"] == "LORA"
    assert config["revision"] == "main"


def test_a_reader_without_patterns_computes_the_same(written: Path) -> None:
    """By the rules of vLLM's adapter loader (vllm/lora/peft_helper.py and utils.py), written anew.

    It takes `r`, an integer `lora_alpha` and `target_modules`; refuses `modules_to_save`, DoRA, biases, and a rank
    above what it makes room for, which `r` tells; and knows one scale for all layers. A tensor's name is that of a
    linear layer behind `base_model.model.`, and `lora_A` or `lora_B`.
    """
    config = json.loads((written / "adapter_config.json").read_text())
    assert not config["modules_to_save"]
    assert not config["use_dora"]
    assert config["bias"] == "none"
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / rank**0.5 if config["use_rslora"] else alpha / rank
    base = transformers.AutoModelForCausalLM.from_pretrained(CASES / "llama-r8" / "base", dtype=torch.float32).eval()
    linear = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, array in load_file(written / "adapter_model.safetensors").items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.(lora_[AB])\.weight", name)
        assert match is not None, name
        factors.setdefault(match[1], {})[match[2]] = torch.from_numpy(array)
    assert factors.keys() <= linear
    for layer, pair in factors.items():
        assert pair["lora_A"].shape[0] == pair["lora_B"].shape[1] <= rank
        with torch.no_grad():
            base.get_submodule(layer).weight += scale * pair["lora_B"] @ pair["lora_A"]
    rows = json.loads((CASES / "llama-r8" / "tokens.json").read_text())[:4]
    found = [[answer_logprob(base, row[side]) for side in ("chosen", "rejected")] for row in rows]
    np.testing.assert_allclose(load_file(written / "expected.safetensors")["logps"], found, rtol=1e-5, atol=1e-4)
