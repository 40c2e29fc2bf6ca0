"""Records what TRL makes of given log-probabilities: `python tests/data/record_losses.py` with trl 1.16.0 installed.

TRL's own `DPOTrainer._compute_loss` runs, in float64, on a model that only returns the token log-probabilities below.
TRL 1.16 has no conservative DPO under a name of its own: its `aot` loss is that formula over sorted differences, and a
batch of one pair has nothing to sort, so it is recorded pair by pair.
"""

import collections
import json
import types
from pathlib import Path
from typing import Any

import torch
from trl.trainer.dpo_trainer import DPOTrainer

PAIRS, LENGTH = 6, 24
COUNTS = [[7, 12], [20, 3], [5, 5], [1, 16], [11, 11], [9, 2]]
CASES: list[dict[str, Any]] = [
    {"type": "sigmoid", "beta": 0.1},
    {"type": "sigmoid", "beta": 0.5},
    {"type": "sigmoid", "beta": 0.1, "label_smoothing": 0.2},
    {"type": "sigmoid", "beta": 0.1, "sft_weight": 0.3},
    {"type": "ipo", "beta": 0.1},
    {"type": "ipo", "beta": 0.5, "sft_weight": 1.0},
    {"type": "hinge", "beta": 0.1},
    {"type": "hinge", "beta": 0.5},
    {"type": "robust", "beta": 0.1, "label_smoothing": 0.1},
    {"type": "robust", "beta": 0.5, "label_smoothing": 0.3},
    {"type": "sigmoid_norm", "beta": 0.1},
    {"type": "sigmoid_norm", "beta": 2.5},
]
METRICS = {"rewards/chosen": "dpo_chosen_reward", "rewards/rejected": "dpo_rejected_reward"} | {
    "rewards/accuracies": "dpo_accuracy", "logps/chosen": "logps/chosen", "logps/rejected": "logps/rejected"
}  # fmt: skip


def compute(
    case: dict[str, Any], tokens: torch.Tensor, mask: torch.Tensor, reference: torch.Tensor
) -> dict[str, float]:
    """Loss and metrics of a batch, first all chosen, then all rejected sides, as TRL lays them out."""
    smooth = case["type"] == "sigmoid" and case.get("label_smoothing")
    names, weights = ["aot" if smooth else case["type"]], [1.0]
    if "sft_weight" in case:
        names, weights = [*names, "sft"], [*weights, case["sft_weight"]]
    metrics: dict[str, list[float]] = collections.defaultdict(list)
    chosen, rejected = reference.chunk(2)
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    nothing = torch.zeros_like(tokens)
    outputs = types.SimpleNamespace(log_probs=tokens, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    same = types.SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=True), accelerator=same, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=names, loss_weights=weights,
        beta=case["beta"], label_smoothing=case.get("label_smoothing", 0.0), use_weighting=False,
        _metrics={"train": metrics}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return {"loss": loss.item()} | {ours: metrics[theirs][0] for theirs, ours in METRICS.items()}


def main() -> None:
    """Write `losses.json`."""
    torch.manual_seed(0)
    sides = torch.tensor(COUNTS).T.reshape(-1)
    mask = (torch.arange(LENGTH) >= LENGTH - sides[:, None]).long()
    tokens = -3 * torch.rand(2 * PAIRS, LENGTH - 1, dtype=torch.float64) * mask[:, 1:]
    # Rounded to float32 first, so that both sides start from the same numbers.
    policy = tokens.sum(1).float().double()
    tokens[:, -1] += policy - tokens.sum(1)
    reference = (policy * (0.7 + 0.6 * torch.rand(2 * PAIRS, dtype=torch.float64))).float().double()
    recorded = []
    for case in CASES:
        if case["type"] == "sigmoid" and "label_smoothing" in case:
            parts = [torch.tensor([pair, pair + PAIRS]) for pair in range(PAIRS)]
        else:
            parts = [torch.arange(2 * PAIRS)]
        found = [compute(case, tokens[part], mask[part], reference[part]) for part in parts]
        means = {name: sum(values[name] for values in found) / len(found) for name in found[0]}
        recorded.append({"settings": case, "expected": means})
    arrays = {
        "policy": policy.reshape(2, PAIRS).T.tolist(),
        "reference": reference.reshape(2, PAIRS).T.tolist(),
        "counts": COUNTS,
    }
    text = json.dumps({"source": "trl 1.16.0", **arrays, "cases": recorded}, indent=1)
    Path(__file__).with_name("losses.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
