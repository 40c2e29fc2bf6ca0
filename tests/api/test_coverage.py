"""The coverage report names tests that exist and run."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPORT = (ROOT / "docs" / "coverage.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", REPORT)))
SKIPS = {"skip", "skipif", "xfail", "importorskip"}

KEYS = [
    "data.tokenizer",
    "data.shuffle",
    "data.components",
    "source.type",
    "source.train_urls",
    "format.type",
    "format.slice_strategy",
    "train_seq_len",
    "trainer.num_train_steps",
    "trainer.train_batch_size",
    "trainer.mp",
    "optimizer.learning_rate",
    "optimizer.warmup",
    "optimizer.lr_schedule",
    "optimizer.max_grad_norm",
    "lora.r",
    "lora.alpha",
    "lora.dropout",
    "lora.zero_init_b",
    "lora.target_modules",
    "lora.exclude_modules",
    "initialize_from_hf",
    "beta",
    "validation_split_fraction",
    "peft_save_path",
    "merged_hf_save_path",
    "hf_save_steps",
]
METRICS = [
    "dpo_loss",
    "dpo_margin_policy",
    "dpo_margin_ref",
    "dpo_accuracy",
    "dpo_chosen_reward",
    "dpo_rejected_reward",
    "parameter_count",
    "trainable_parameter_count",
    "fraction_trainable",
]
FAULTS = [
    "no node fits",
    "quota exceeded",
    "half a gang",
    "one host of four preempted",
    "node lost",
    "kubelet stopped",
    "out of memory",
    "three crashes at one step",
    "NaN",
    "a hang",
    "a bucket that takes no checkpoint",
    "a bucket that answers 503 for two minutes",
    "SIGKILL",
    "an eviction by Kueue",
    "suspended and resumed",
    "the operator is away for the whole run",
    "JobSet's webhook does not answer",
    "the JobSet controller is down",
    "the trainer cannot be reached",
    "the trainer lies",
    "its pod is deleted by hand",
    "its Job or JobSet or ConfigMap is deleted by hand",
]


@cache
def module(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def skips(node: ast.AST) -> list[str]:
    """What in a piece of a test file may leave tests out."""
    names = [part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)]
    return sorted(SKIPS & set(names))


def functions(path: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    found = module(path).body
    return {node.name: node for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_test_exists_and_is_not_skipped(path: str, name: str) -> None:
    assert (ROOT / path).is_file(), f"{path} does not exist"
    assert name in functions(path), f"{path} has no test {name}"
    assert skips(functions(path)[name]) == []
    outside = [node for node in module(path).body if isinstance(node, ast.Assign | ast.Expr)]
    assert [skip for node in outside for skip in skips(node)] == []


def rows(heading: str) -> dict[str, str]:
    """First cell → row, of the table below a heading."""
    section = REPORT.split(f"\n## {heading}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return {line.split("|")[1].strip(): line for line in lines}


@pytest.mark.parametrize(
    ("heading", "wanted"),
    [
        ("Keys", KEYS),
        ("Metrics", METRICS),
        ("Shortcomings", [str(number) for number in range(1, 31)]),
        ("Faults", FAULTS),
    ],
)
def test_every_line_is_there_with_a_test_that_shows_it(heading: str, wanted: list[str]) -> None:
    found = rows(heading)
    named = [name.strip("`") for cell in found for name in cell.split(", ")]
    assert named == wanted
    for cell, row in found.items():
        assert re.search(r"::test_\w+`", row), f"{cell} has no test"


def test_a_skipped_test_would_be_noticed() -> None:
    source = "@pytest.mark.skipif(True, reason='x')\ndef test_a(): ...\ndef test_b():\n    pytest.skip('no')\n"
    first, second = ast.parse(source).body
    assert (skips(first), skips(second)) == (["skipif"], ["skip"])
