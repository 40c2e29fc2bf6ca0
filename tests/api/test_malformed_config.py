"""Hostile configurations: each wrong value, key or file is refused in a sentence that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lora_dpo_api import config_file, yaml12
from lora_dpo_api.errors import ConfigError

FULL = """
data:
  tokenizer: gs://bucket/tokenizer
  shuffle: true
  components:
    prefs:
      source: {type: url, train_urls: ["gs://bucket/rows.jsonl"], validation_urls: ["gs://bucket/held.jsonl"]}
      format: {type: preference_chat, slice_strategy: drop, mask_user_turns: true, chat_template: "x"}
  train_weights: {prefs: 1.0}
initialize_from_hf: gs://bucket/model
revision: main
train_seq_len: 2048
trainer: {num_train_steps: 100, train_batch_size: 8, mp: "p=f32,c=f32", seed: 1}
optimizer: {learning_rate: 5e-6, warmup: 0.1, lr_schedule: cosine, min_lr_ratio: 0.1, max_grad_norm: 1.0,
  weight_decay: 0.01, beta1: 0.9, beta2: 0.95, epsilon: 1e-8}
lora: {r: 16, alpha: 16.0, dropout: 0.05, zero_init_b: true, target_modules: [q_proj], exclude_modules: [lm_head],
  rslora: false, rank_pattern: {q_proj: 8}, alpha_pattern: {q_proj: 8.0}}
beta: 0.1
loss: {type: sigmoid, label_smoothing: 0.1, sft_weight: 0.5}
validation_split_fraction: 0.1
eval: {every_steps: 10, max_pairs: 100}
output:
  path: gs://bucket/out
  on_existing: resume
  peft: {every_steps: 50}
  merged_hf: {enabled: true, dtype: bfloat16}
  checkpoint: {every_seconds: 60, keep: 2}
cache: {path: gs://bucket/cache}
adapter: {init_from: gs://bucket/adapter}
reference: {adapter: gs://bucket/adapter}
tracking: {tensorboard: false, wandb: {project: p, entity: e}}
run_id: run
"""
WORDS = {"type", "slice_strategy", "lr_schedule", "on_existing", "dtype"}
"""Keys that take one of a few words."""


def wrong_values(key: str, value: Any) -> tuple[Any, ...]:
    """Values that cannot stand in the place of a right one."""
    match value:
        case bool():
            return ("maybe", 2, [], {"a": 1})
        case int() | float():
            return ("many", "5e-6 or so", [], [1], {"a": 1}, float("nan"), float("-inf"), -1 if key != "seed" else 0.5)
        case str():
            return (5, 0.5, [], {"a": 1}, *(("no-such-word",) if key in WORDS else ()))
        case list():
            return (5, {"a": 1}, [None], [[]], [5])
        case _:
            return (5, True, [], [1])


def nodes(tree: Any, here: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        yield (*here, key), value
        if isinstance(value, dict):
            yield from nodes(value, (*here, key))


TREE = yaml12.loads(FULL)
VALUES = [
    (path, wrong)
    for path, value in nodes(TREE)
    if path != ("data", "shuffle")  # Levanter's other forms of it are taken too
    for wrong in wrong_values(path[-1], value)
]
SECTIONS = [path for path, value in nodes(TREE) if isinstance(value, dict)]
NAMED = {("data", "components"), ("data", "train_weights"), ("lora", "rank_pattern"), ("lora", "alpha_pattern")}
"""Sections with names of the user's own."""
FILES = {
    "empty": "",
    "comment": "# nothing",
    "null": "null",
    "list": "- data",
    "text": "data",
    "number": "5e-6",
    "unclosed": "data: {components: [",
    "tab": "data:\n\tcomponents: {}",
    "indent": "data:\n  a: 1\n b: 2",
    "duplicate-key": FULL + "\nbeta: 0.2\n",
    "two-documents": FULL + "\n---\n" + FULL,
    "unknown-anchor": "data: *nothing",
    "python-object": "data: !!python/object/apply:os.system [true]",
    "unknown-tag": FULL.replace("beta: 0.1", "beta: !secret 0.1"),
    "binary": "\x00\x01\x02",
    "keys-of-numbers": "1: 2\n3: 4",
    "keys-of-lists": "? [a, b]\n: 1",
    "merge-key": "data: {<<: 5}",
    "deep": "data: " + "[" * 5000 + "]" * 5000,
    "deep-mapping": "data: " + "{a: " * 5000 + "}" * 5000,
    "json-cut": json.dumps(TREE)[:-10],
    "huge-number": "beta: " + "9" * 10_000,
    "aliases": "data: &a [x]\ntrainer: *a\n",
    "many-aliases": "\n".join(
        ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    ),
    "itself": "data: &a {b: *a}\ninitialize_from_hf: x\n",
}


def test_the_configuration_is_right_to_begin_with() -> None:
    assert config_file.load(FULL).config.lora.r == 16


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config_file.load(text)
    assert caught.value.problems
    assert all(len(str(problem)) < 1000 for problem in caught.value.problems)
    return caught.value


@pytest.mark.parametrize(("path", "wrong"), VALUES, ids=[f"{'.'.join(path)}={wrong}" for path, wrong in VALUES])
def test_a_wrong_value_is_named_with_its_place(path: tuple[str, ...], wrong: Any) -> None:
    tree = yaml12.loads(FULL)
    here = tree
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = wrong
    named = [problem.path for problem in refusal(yaml12.dumps(tree)).problems]
    # The kind of a source decides what else it holds, so that the whole source is named.
    place = path[:-1] if path[-2:] == ("source", "type") else path
    assert any(name.startswith(".".join(place)) for name in named), named


@pytest.mark.parametrize("path", [path for path in SECTIONS if path not in NAMED], ids=".".join)
def test_an_unknown_key_is_named(path: tuple[str, ...]) -> None:
    tree = yaml12.loads(FULL)
    here = tree
    for key in path:
        here = here[key]
    here["no_such_key"] = 1
    (problem,) = refusal(yaml12.dumps(tree)).problems
    assert problem.path == ".".join((*path, "no_such_key"))


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_configuration_is_refused(case: str) -> None:
    refusal(FILES[case])


def test_there_are_enough_of_them() -> None:
    assert len(VALUES) + len(SECTIONS) - len(NAMED) + len(FILES) >= 200
