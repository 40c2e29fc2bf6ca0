from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import chat, dataset, errors, prepared, storage

type MakeConfig = Callable[..., TrainerConfig]
type Rows = Callable[..., Path]
type Row = Callable[..., dict[str, Any]]


def data(train: Path, validation: Path | None = None, **layout: Any) -> dict[str, Any]:
    source = {
        "type": "url",
        "train_urls": [str(train)],
        "validation_urls": [str(validation)] if validation else [],
    }
    return {"components": {"prefs": {"source": source, "format": layout}}}


def build(config: TrainerConfig) -> tuple[prepared.Manifest, prepared.Prepared]:
    plan = dataset.plan(config)
    manifest = dataset.build(plan, config.cache_path)
    return manifest, prepared.load(config.cache_path, plan.digest)


def test_every_row_is_in_one_split_and_comes_back(make_config: MakeConfig) -> None:
    manifest, pairs = build(make_config())
    report = manifest.report
    assert (len(pairs.train), len(pairs.validation)) == (report["train_pairs"], report["validation_pairs"])
    assert len(pairs.train) + len(pairs.validation) + report["dropped_pairs"] == 96
    first = pairs.train[0]
    assert first.chosen_ids.dtype == np.int32
    assert (len(first.chosen_ids), len(first.rejected_ids)) == tuple(pairs.train.lengths[0])
    assert first.shared == pairs.train.shared[0]
    assert first.targets == tuple(pairs.train.targets[0])
    assert report["tokens"] == sum(pairs.train[key].encoded_length for key in range(len(pairs.train)))


def test_a_held_out_prompt_is_never_trained_on(make_config: MakeConfig, write_jsonl: Rows, row: Row) -> None:
    rows = [row(f"prompt {number % 40}", "this", f"that {number}") for number in range(120)]
    _, pairs = build(make_config(data=data(write_jsonl(rows)), validation_split_fraction=0.3))

    def prompts(split: prepared.Split) -> set[bytes]:
        found = (split[key] for key in range(len(split)))
        return {pair.chosen_ids[: int(np.argmax(pair.chosen_mask))].tobytes() for pair in found}

    assert prompts(pairs.train)
    assert prompts(pairs.validation)
    assert prompts(pairs.train).isdisjoint(prompts(pairs.validation))


def test_a_validation_row_whose_prompt_is_trained_on_is_left_out(
    make_config: MakeConfig, write_jsonl: Rows, row: Row
) -> None:
    train = write_jsonl([row("a"), row("b")], "train.jsonl")
    validation = write_jsonl([row("b", "x", "y"), row("c")], "validation.jsonl")
    manifest, pairs = build(make_config(data=data(train, validation), validation_split_fraction=0.0))
    assert (len(pairs.train), len(pairs.validation)) == (2, 1)
    assert any("also trained on" in note for note in manifest.report["notes"])


def test_the_digest_depends_on_content_and_not_on_names(make_config: MakeConfig, write_jsonl: Rows, row: Row) -> None:
    first, same, other = (
        dataset.plan(make_config(data=data(write_jsonl(rows, name)))).digest
        for rows, name in (([row()], "a.jsonl"), ([row()], "b.jsonl"), ([row("other")], "c.jsonl"))
    )
    assert first == same != other
    longer = make_config(data=data(write_jsonl([row()], "a.jsonl")), train_seq_len=64)
    assert dataset.plan(longer).digest != first


def test_a_pair_too_long_names_its_place_and_length(make_config: MakeConfig, write_jsonl: Rows, row: Row) -> None:
    rows = write_jsonl([row(), row("word " * 50)])
    with pytest.raises(errors.PairTooLong, match=r"rows\.jsonl:2 \d+ tokens.*train_seq_len is 128"):
        build(make_config(data=data(rows)))


def test_a_pair_too_long_can_be_dropped(make_config: MakeConfig, write_jsonl: Rows, row: Row) -> None:
    rows = write_jsonl([row(), row("word " * 50)])
    manifest, pairs = build(make_config(data=data(rows, slice_strategy="drop"), validation_split_fraction=0.0))
    assert len(pairs.train) == manifest.report["dropped_pairs"] == 1


def test_nothing_is_complete_after_bad_rows(make_config: MakeConfig, write_jsonl: Rows, row: Row) -> None:
    config = make_config(data=data(write_jsonl([row(), {"chosen": 1}])))
    plan = dataset.plan(config)
    with pytest.raises(errors.InvalidRow, match=r"1 of 2 rows cannot be used: .*rows\.jsonl:2"):
        dataset.build(plan, config.cache_path)
    assert prepared.find(config.cache_path, plan.digest) is None


def test_repeated_pairs_are_counted_and_kept(make_config: MakeConfig, write_jsonl: Rows, row: Row) -> None:
    rows = [row("a"), row("b"), row("a"), row("a", "other"), row("a")]
    manifest, pairs = build(make_config(data=data(write_jsonl(rows)), validation_split_fraction=0.0))
    assert (manifest.report["repeated"], manifest.report["repeated_at"]) == (2, ["rows.jsonl:3", "rows.jsonl:5"])
    assert (len(pairs.train), manifest.report["train_prompts"]) == (5, 2)


def test_lengths_are_reported_as_shares_of_the_pairs(make_config: MakeConfig, write_jsonl: Rows, row: Row) -> None:
    rows = [row(f"q{number}") for number in range(8)] + [row("q " * 30)]
    manifest, pairs = build(make_config(data=data(write_jsonl(rows)), validation_split_fraction=0.0))
    shares = manifest.report["length_percentiles"]
    assert shares["100"] == manifest.report["longest_pair"] == pairs.train.lengths.max()
    assert shares["50"] == np.sort(pairs.train.lengths.max(axis=1))[4]


def test_a_component_of_weight_zero_is_held_out_whole(make_config: MakeConfig, write_jsonl: Rows, row: Row) -> None:
    train, held_out = write_jsonl([row("a"), row("b")], "t.jsonl"), write_jsonl([row("c"), row("d")], "v.jsonl")
    components = {
        name: {"source": {"type": "url", "train_urls": [str(path)]}} for name, path in (("t", train), ("v", held_out))
    }
    weights = {"t": 1.0, "v": 0.0}
    config = make_config(data={"components": components, "train_weights": weights}, validation_split_fraction=0.0)
    _, pairs = build(config)
    assert (len(pairs.train), len(pairs.validation)) == (2, 2)
    assert set(pairs.validation.component.tolist()) == {1}


@pytest.mark.parametrize("strategy", ["drop", "left", "right"])
@pytest.mark.parametrize("length", [16, 17, 24, 40])
def test_no_pair_without_a_token_to_learn_is_ever_trained_on(
    make_config: MakeConfig, write_jsonl: Rows, row: Row, strategy: str, length: int
) -> None:
    rng = np.random.default_rng(length)
    words = [" ".join("word" for _ in range(count)) for count in rng.integers(0, 30, 120)]
    rows = [row(f"q {a}", b, f"no {c}") for a, b, c in zip(words[::3], words[1::3], words[2::3], strict=True)]
    rows.append(row("short", "a", "b"))
    config = make_config(data=data(write_jsonl(rows), slice_strategy=strategy), train_seq_len=length)
    manifest, pairs = build(config)
    report = manifest.report
    assert report["train_pairs"] + report["validation_pairs"] + report["dropped_pairs"] == len(rows)
    for split in (pairs.train, pairs.validation):
        assert (split.targets >= 1).all()
        assert (split.lengths <= length).all()


def test_small_shards_read_like_one(make_config: MakeConfig, memory: str) -> None:
    _, whole = build(make_config())
    writer = prepared.Writer(memory, "0" * 32, shard_tokens=500)
    for key in range(len(whole.train)):
        pair = whole.train[key]
        writer.add("train", *prepared_sides(pair), component=0)
    writer.finish({})
    shards = prepared.load(memory, "0" * 32).train
    assert len(prepared.load(memory, "0" * 32).manifest.shards["train"]) > 3
    np.testing.assert_array_equal(shards.lengths, whole.train.lengths)
    for key in range(len(shards)):
        np.testing.assert_array_equal(shards[key].rejected_ids, whole.train[key].rejected_ids)
        np.testing.assert_array_equal(shards[key].chosen_mask, whole.train[key].chosen_mask)


def prepared_sides(pair: Any) -> tuple[Any, Any]:
    return (
        chat.Tokens(pair.chosen_ids, pair.chosen_mask),
        chat.Tokens(pair.rejected_ids, pair.rejected_mask),
    )


def test_a_damaged_shard_is_noticed(make_config: MakeConfig) -> None:
    config = make_config()
    manifest, _ = build(config)
    name = manifest.shards["train"][0]
    storage.write_bytes(storage.join(prepared.folder(config.cache_path, manifest.digest), name), b"damaged")
    with pytest.raises(errors.StaleData, match=name):
        prepared.load(config.cache_path, manifest.digest)


def test_many_more_rows_take_hardly_more_memory(make_config: MakeConfig, tmp_path: Path, row: Row) -> None:
    """With small shards; `benchmarks/data/prepare_rows.py` measures a process, with a million rows."""

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for number in range(count):
                file.write(json.dumps(row(f"question {number}", "this is one", "that")) + "\n")
        config = make_config(data=data(path), output={"path": str(tmp_path / f"out-{count}")})
        plan = dataset.plan(config)
        tracemalloc.start()
        try:
            dataset.build(plan, config.cache_path, shard_tokens=20_000)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(600)  # what is made once
    few, many = peak(1200), peak(4800)
    # Two sets of hashes; the text of a row alone is 200 bytes.
    assert many - few < 3600 * 250
