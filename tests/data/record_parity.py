"""Records parity cases of further architectures into `parity/`; run with the export environment's Python.

Each is a LoRA-DPO run as PEFT and PyTorch compute it, in float32 on a CPU: the loop is written out here. Before it
records anything it repeats the run `llama-r8`, which TRL's trainer recorded, and must give the same.
`lora_dpo_trainer.parity` describes the layout.
"""

import json
import shutil
import sys
from pathlib import Path

import peft
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))

import tiny_models

HERE = Path(__file__).parent / "parity"
SOURCE = HERE / "llama-r8"
SETTINGS = {
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "adam": {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.0},
    "max_grad_norm": 1.0,
    "shuffle": False,
    "dtype": "float32",
}
CASES = {
    "qwen3-r4-three-targets": {
        "model": "qwen3",
        "beta": 0.3,
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj", "down_proj"]},
    },
    "gemma2-tied-head-rslora": {
        "model": "gemma2",
        "beta": 0.05,
        "lora": {
            "r": 5,
            "lora_alpha": 4,
            "use_rslora": True,
            "target_modules": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 3},
        },
    },
    "olmo2-r16": {"model": "olmo2", "beta": 0.1, "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}},
}


def answer_logprob(model: torch.nn.Module, side: dict) -> torch.Tensor:
    ids = torch.tensor([side["input_ids"]])
    logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1).gather(1, ids[0, 1:, None])[:, 0]
    return logp[torch.tensor(side["loss_mask"][1:], dtype=torch.bool)].sum()


def logprobs(model: torch.nn.Module, rows: list) -> torch.Tensor:
    """[rows, 2]."""
    sides = [[answer_logprob(model, row[side]) for side in ("chosen", "rejected")] for row in rows]
    return torch.stack([torch.stack(pair) for pair in sides])


def train(model: torch.nn.Module, rows: list, reference: torch.Tensor, settings: dict) -> list[dict]:
    """Train the adapter, and return what each step gives."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam, size = settings["adam"], settings["batch_size"]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=settings["learning_rate"],
        betas=(adam["beta1"], adam["beta2"]),
        eps=adam["epsilon"],
        weight_decay=adam["weight_decay"],
    )
    steps = []
    for number in range(settings["steps"]):
        part = slice(number * size, (number + 1) * size)
        policy = logprobs(model, rows[part])
        rewards = settings["beta"] * (policy - reference[part])
        margin = rewards[:, 0] - rewards[:, 1]
        loss = torch.nn.functional.softplus(-margin).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable, settings["max_grad_norm"])
        optimizer.step()
        steps.append(
            {
                "dpo_loss": loss.item(),
                "grad_norm": norm.item(),
                "dpo_chosen_reward": rewards[:, 0].mean().item(),
                "dpo_rejected_reward": rewards[:, 1].mean().item(),
                "dpo_accuracy": (margin > 0).float().mean().item(),
                "reward_margin": margin.mean().item(),
                "logp_policy_chosen": policy[:, 0].mean().item(),
                "logp_policy_rejected": policy[:, 1].mean().item(),
            }
        )
    return steps


def check() -> None:
    """The loop is TRL's: it repeats TRL's own run."""
    expected = json.loads((SOURCE / "expected.json").read_text())
    rows = json.loads((SOURCE / "tokens.json").read_text())
    base = tiny_models.load(SOURCE / "base")
    with torch.no_grad():
        reference = logprobs(base, rows)
    model = peft.PeftModel.from_pretrained(base, SOURCE / "adapter_init", is_trainable=True)
    found = train(model, rows, reference, expected["settings"])
    for mine, theirs in zip(found, expected["steps"], strict=True):
        for name in ("dpo_loss", "grad_norm", "reward_margin"):
            assert abs(mine[name] - theirs[name]) <= 1e-4 * abs(theirs[name]) + 1e-5, (name, mine, theirs)


def record(name: str, case: dict) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "base").mkdir(parents=True)
    vocabulary = json.loads((SOURCE / "base" / "config.json").read_text())["vocab_size"]
    tiny_models.save(case["model"], folder / "base", vocab_size=vocabulary)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        shutil.copy(SOURCE / "base" / file, folder / "base" / file)
    count = SETTINGS["steps"] * SETTINGS["batch_size"]
    lines = (SOURCE / "prefs.jsonl").read_text().splitlines()[:count]
    (folder / "prefs.jsonl").write_text("\n".join(lines) + "\n")
    rows = json.loads((SOURCE / "tokens.json").read_text())[:count]
    (folder / "tokens.json").write_text(json.dumps(rows) + "\n")

    torch.manual_seed(1)
    base = tiny_models.load(folder / "base")
    with torch.no_grad():
        reference = logprobs(base, rows)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **case["lora"]))
    settings = SETTINGS | {"beta": case["beta"], "lora": case["lora"]}
    model.save_pretrained(folder / "adapter_init", save_embedding_layers=False)
    steps = train(model, rows, reference, settings)
    with torch.no_grad():
        final = logprobs(model, rows)
    model.save_pretrained(folder / "adapter_final", save_embedding_layers=False)
    for part in ("adapter_init", "adapter_final"):
        (folder / part / "README.md").unlink(missing_ok=True)
        path = folder / part / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"base_model_name_or_path": "base"}, indent=1) + "\n")
    loop = f"a PEFT adapter trained by a plain PyTorch loop that equals TRL's trainer on {SOURCE.name}"
    versions = f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__} on CPU"
    expected = {
        "settings": settings,
        "source": f"{loop}, {versions}",
        "steps": steps,
        "reference_logps": reference.tolist(),
        "final_policy_logps": final.tolist(),
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


check()
for name, case in CASES.items():
    record(name, case)
