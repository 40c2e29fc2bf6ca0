"""Compares this trainer with a recorded run of TRL and PEFT: `python -m lora_dpo_trainer.parity FOLDER`.

A case holds a base, a starting adapter, preference rows, their tokens, and what each step must give. The run here uses
packing and shared prompts like any other; only data order, batch size and settings come from the case. Exit code 1
when a quantity differs by more than its tolerance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from lora_dpo_api.config_file import LossType, OptimizerConfig, PreferenceChatFormat
from lora_dpo_trainer import batch, errors, lora, model, packing, peft_io, pretrained, rows, sources, step
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer
from lora_dpo_trainer.pairs import TokenizedPair

RELATIVE, NEAR_ZERO = 2e-4, 2e-5
REFERENCE_ABSOLUTE = 1e-3
GRADIENT_RELATIVE = 1e-3
ADAPTER_RELATIVE = 5e-4

_STEP_METRICS = {
    "dpo_loss": "dpo_loss",
    "dpo_chosen_reward": "dpo_chosen_reward",
    "dpo_rejected_reward": "dpo_rejected_reward",
    "dpo_accuracy": "dpo_accuracy",
    "logp_policy_chosen": "logps/chosen",
    "logp_policy_rejected": "logps/rejected",
}
"""A case's name of a step's quantity → ours."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the result.

    Attributes:
        quantity: What was compared.
        difference: The largest difference, in the unit of `tolerance`.
        tolerance: What is allowed.
    """

    quantity: str
    difference: float
    tolerance: float
    unit: str

    @property
    def passes(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "pass" if self.passes else "FAIL"
        return f"{verdict}  {self.quantity:28} {self.difference:10.3g} {self.unit} (allowed {self.tolerance:g})"


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder of the parity layout."""

    folder: Path

    @property
    def expected(self) -> dict[str, Any]:
        """Settings and recorded values."""
        return dict(json.loads((self.folder / "expected.json").read_text()))

    def recorded_pairs(self) -> list[TokenizedPair]:
        """The pairs of `tokens.json`, in training order."""
        found = json.loads((self.folder / "tokens.json").read_text())
        return [_pair(key, [_side(row[name]) for name in ("chosen", "rejected")]) for key, row in enumerate(found)]

    def tokenized_pairs(self) -> list[TokenizedPair]:
        """The pairs of `prefs.jsonl`, through the tokenizer and chat template of the base."""
        tokenizer = pretrained.load_tokenizer(pretrained.Pretrained(str(self.folder / "base")))
        lines = (self.folder / "prefs.jsonl").read_text().splitlines()
        parsed = []
        for number, line in enumerate(lines, start=1):
            pair = rows.parse(
                sources.RawRow(f"prefs.jsonl:{number}", json.loads(line)), PreferenceChatFormat(), keep_equal=True
            )
            if isinstance(pair, rows.Rejection):
                raise errors.InvalidRow(f"{pair.where}: {pair.problem} {pair.detail}")
            parsed.append(pair)
        encoded = tokenizer.encode(parsed)
        return [_pair(key, [(side.ids, side.mask) for side in sides]) for key, sides in enumerate(encoded)]


def run(case: Case) -> list[Finding]:
    """Train as the case says, and compare every quantity."""
    expected = case.expected
    pairs = case.tokenized_pairs()
    findings = [_tokens(pairs, case.recorded_pairs())]

    base = model.load_base(str(case.folder / "base"))
    lora_config = peft_io.load_config(str(case.folder / "adapter_init"))
    plan = lora.resolve(base.linears, lora_config)
    adapter = peft_io.load(str(case.folder / "adapter_init"), plan)
    settings = expected["settings"]
    optimizer = Optimizer(_optimizer_config(settings), settings["steps"])
    goal = Objective(LossType(settings.get("loss_type", "sigmoid")), settings["beta"])

    score = step.make_logprob_step(base, plan)
    scoring = _plan(pairs, settings["batch_size"], None)
    reference = _logps(score, None, scoring, pairs)
    findings.append(_absolute("reference log-probabilities", reference, expected["reference_logps"]))

    training = _plan(pairs, settings["batch_size"], settings["steps"])
    train = step.make_train_step(base, plan, goal, optimizer)
    state = step.init_state(adapter, optimizer, seed=0)
    history = []
    for number in range(settings["steps"]):
        keys = training.keys_of_step(number)
        packed = batch.build([pairs[key] for key in keys], training.shape_of(keys), reference[keys])
        state, metrics = train(state, packed)
        history.append({name: float(value) for name, value in metrics.items()})
    findings += _steps(history, expected["steps"])
    findings.append(
        _mixed("final log-probabilities", _logps(score, state.adapter, scoring, pairs), expected["final_policy_logps"])
    )
    findings.append(
        _adapter(peft_io.tensors(state.adapter, plan), load_file(case.folder / "adapter_final" / peft_io.WEIGHTS))
    )
    return findings


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lora_dpo_trainer.parity", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a parity case")
    findings = run(Case(parser.parse_args(words).folder))
    for finding in findings:
        print(finding)
    return 0 if all(finding.passes for finding in findings) else 1


def _plan(pairs: Sequence[TokenizedPair], batch_size: int, steps: int | None) -> packing.BatchPlan:
    lengths = packing.PairLengths.of(pairs)
    return packing.BatchPlan.make(lengths, batch_size, total_steps=steps, shuffle=False, max_shapes=1)


def _logps(
    score: step.LogprobStep, adapter: lora.Adapter | None, plan: packing.BatchPlan, pairs: Sequence[TokenizedPair]
) -> np.ndarray:
    found: dict[int, np.ndarray] = {}
    for number in range(plan.total_steps):
        keys = plan.keys_of_step(number)
        packed = batch.build([pairs[key] for key in keys], plan.shape_of(keys))
        found |= batch.in_order(np.asarray(score(adapter, packed)), packed)
    return np.stack([found[pair.key] for pair in pairs])


def _optimizer_config(settings: Mapping[str, Any]) -> OptimizerConfig:
    adam = settings["adam"]
    return OptimizerConfig(
        learning_rate=settings["learning_rate"],
        lr_schedule=settings["lr_schedule"],
        warmup=settings.get("warmup_steps", settings.get("warmup", 0)),
        max_grad_norm=settings["max_grad_norm"],
        weight_decay=adam["weight_decay"],
        beta1=adam["beta1"],
        beta2=adam["beta2"],
        epsilon=adam["epsilon"],
    )


def _tokens(ours: Sequence[TokenizedPair], recorded: Sequence[TokenizedPair]) -> Finding:
    different = sum(
        not np.array_equal(getattr(mine, name), getattr(theirs, name))
        for mine, theirs in zip(ours, recorded, strict=True)
        for name in ("chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask")
    )
    return Finding("tokens and masks", different, 0, "different")


def _steps(ours: Sequence[Mapping[str, float]], recorded: Sequence[Mapping[str, float]]) -> Iterable[Finding]:
    for theirs, mine in _STEP_METRICS.items():
        if theirs in recorded[0]:
            yield _mixed(theirs, [row[mine] for row in ours], [row[theirs] for row in recorded])
    margins = [row["dpo_chosen_reward"] - row["dpo_rejected_reward"] for row in ours]
    yield _mixed("reward_margin", margins, [row["reward_margin"] for row in recorded])
    norms = np.array([row["grad_norm"] for row in ours]), np.array([row["grad_norm"] for row in recorded])
    worst = float(np.max(np.abs(norms[0] - norms[1]) / np.abs(norms[1])))
    yield Finding("grad_norm", worst, GRADIENT_RELATIVE, "relative")


def _absolute(quantity: str, ours: Any, recorded: Any) -> Finding:
    return Finding(
        quantity, float(np.max(np.abs(np.asarray(ours) - np.asarray(recorded)))), REFERENCE_ABSOLUTE, "absolute"
    )


def _mixed(quantity: str, ours: Any, recorded: Any) -> Finding:
    """The difference as a multiple of what is allowed: relative, or absolute near 0."""
    mine, theirs = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    allowed = np.maximum(RELATIVE * np.abs(theirs), NEAR_ZERO)
    return Finding(quantity, float(np.max(np.abs(mine - theirs) / allowed)), 1.0, "of tolerance")


def _adapter(ours: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray]) -> Finding:
    if set(ours) != set(recorded):
        return Finding("final adapter: tensor names", len(set(ours) ^ set(recorded)), 0, "different")
    worst = max(float(np.linalg.norm(ours[name] - recorded[name]) / np.linalg.norm(recorded[name])) for name in ours)
    return Finding("final adapter", worst, ADAPTER_RELATIVE, "relative")


def _side(recorded: Mapping[str, Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(recorded["input_ids"], np.int32), np.asarray(recorded["loss_mask"], np.bool_)


def _pair(key: int, sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> TokenizedPair:
    (chosen_ids, chosen_mask), (rejected_ids, rejected_mask) = sides
    return TokenizedPair(key, chosen_ids, chosen_mask, rejected_ids, rejected_mask)


if __name__ == "__main__":
    sys.exit(main())
