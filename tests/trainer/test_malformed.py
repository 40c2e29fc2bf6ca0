"""Hostile data: whatever a file or a row holds, preparing ends in one sentence that says what is wrong and where."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_api.protocol import ExitCode
from lora_dpo_trainer import dataset, errors, prepared, sources

from .conftest import make_row

GOOD = b"".join(json.dumps(make_row(f"which {number}")).encode() + b"\n" for number in range(400))
NESTED: Any = []
for _ in range(50):
    NESTED = [NESTED]
ODD: tuple[Any, ...] = (None, 0, -1.5, 1e308, True, {}, {"": None}, [[]], [None], [0], NESTED, {"role": "user"})
SIDES = ("chosen", "rejected")


def changed(path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    """A good row after `change(container, key)` at a path."""
    row: Any = json.loads(json.dumps(make_row()))  # both sides of it share their first message
    here = row
    for key in path[:-1]:
        here = here[key]
    change(here, path[-1])
    return dict(row)


def replaced(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    return changed(path, lambda container, key: container.__setitem__(key, value))


def without(path: tuple[Any, ...]) -> dict[str, Any]:
    return changed(path, lambda container, key: container.__delitem__(key))


def malformed_rows() -> Iterator[tuple[str, Any]]:
    """Rows that are no pairs, with what the report must say of them."""
    for side in SIDES:
        yield f"missing field (rows.jsonl:3 '{side}')", without((side,))
        for odd in ODD:
            yield f"not a list of messages with role and content (rows.jsonl:3 field '{side}'", replaced((side,), odd)
            for turn in range(2):
                yield f"field '{side}'", replaced((side, turn), odd)
                for name in ("role", "content"):
                    yield f"field '{side}'", replaced((side, turn, name), odd)
        for turn in range(2):
            for name in ("role", "content"):
                yield f"field '{side}'", without((side, turn, name))
        for role in ("user", "system", "tool", "", "Assistant", "assistant "):
            yield "assistant turn", replaced((side, 1, "role"), role)
        yield "different prompts", replaced((side, 0, "content"), "something else")
        yield "different prompts", without((side, 0))
        yield "assistant turn", without((side, 1))
        for blank in ("", " ", "\n\t"):
            yield "an empty answer", replaced((side, 1, "content"), blank)
        yield "an empty answer", replaced((side,), [])
        for turn in range(2):
            yield "half of a surrogate pair", replaced((side, turn, "content"), "half a \ud83d character")
    for name in ("messages", "conversations", "chat_template", "add_generation_prompt"):
        yield f"'chat_template_kwargs': {name}", make_row() | {"chat_template_kwargs": {name: 5}}
    yield "chosen and rejected are the same", replaced(("rejected", 1, "content"), "this")
    for odd in (None, 0, "text", [], [make_row()]):
        yield "not a JSON object", odd


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def flipped(data: bytes, at: int) -> bytes:
    """With 64 bytes turned over."""
    return data[:at] + bytes(255 - byte for byte in data[at : at + 64]) + data[at + 64 :]


def parquet(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=50)
    return sink.getvalue()


PAIRS = [json.loads(line) for line in GOOD.splitlines()]
FILES: dict[str, tuple[str, bytes]] = {
    "empty": ("rows.jsonl", b""),
    "blank-lines": ("rows.jsonl", b"\n \n\r\n"),
    "binary": ("rows.jsonl", bytes(range(256)) * 20),
    "utf-16": ("rows.jsonl", GOOD.decode().encode("utf-16")),
    "latin-1": ("rows.jsonl", '{"chosen": "é", "rejected": "è"}\n'.encode("latin-1")),
    "cut": ("rows.jsonl", GOOD[:-30]),
    "one-array": ("rows.jsonl", json.dumps(PAIRS[:20]).encode()),
    "pretty-printed": ("rows.jsonl", json.dumps(PAIRS[0], indent=2).encode()),
    "deep": ("rows.jsonl", GOOD + b"[" * 100_000),
    "deep-in-a-field": ("rows.jsonl", GOOD + b'{"chosen": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "huge-number": ("rows.jsonl", GOOD + b'{"chosen": ' + b"9" * 10_000 + b"}"),
    "nan": ("rows.jsonl", b'{"chosen": NaN, "rejected": Infinity}\n'),
    "gz-that-is-none": ("rows.jsonl.gz", GOOD),
    "gz-empty": ("rows.jsonl.gz", b""),
    "gz-cut": ("rows.jsonl.gz", gzipped(GOOD)[:-40]),
    "gz-damaged": ("rows.jsonl.gz", flipped(gzipped(GOOD), 200)),
    "gz-with-rubbish-behind": ("rows.jsonl.gz", gzipped(GOOD) + b"rubbish"),
    "gz-of-gz": ("rows.jsonl.gz", gzipped(gzipped(GOOD))),
    "zst-that-is-none": ("rows.jsonl.zst", GOOD),
    "zst-cut": ("rows.jsonl.zst", zstandard.compress(GOOD)[:-40]),
    "zst-damaged": ("rows.jsonl.zst", flipped(zstandard.compress(GOOD), 60)),
    "parquet-that-is-none": ("rows.parquet", GOOD),
    "parquet-empty": ("rows.parquet", b""),
    "parquet-cut": ("rows.parquet", parquet(PAIRS)[:-40]),
    "parquet-damaged": ("rows.parquet", flipped(parquet(PAIRS), 100)),
    "parquet-without-columns": ("rows.parquet", parquet([{"text": "no pair"}])),
    "parquet-of-numbers": ("rows.parquet", parquet([{"chosen": 1, "rejected": 2.5}])),
    "parquet-of-nulls": ("rows.parquet", parquet([{"chosen": None, "rejected": None}])),
}
ROWS = list(malformed_rows())


@pytest.fixture(scope="session")
def empty_plan(tmp_path_factory: pytest.TempPathFactory) -> dataset.Plan:
    """The tiny model's tokenizer and one component; the files are each test's own."""
    base = Path(__file__).parents[1] / "data" / "parity" / "llama-r8"
    prefs = {"source": {"type": "url", "train_urls": [str(base / "prefs.jsonl")]}}
    config = TrainerConfig.model_validate(
        {
            "data": {"components": {"prefs": prefs}},
            "initialize_from_hf": str(base / "base"),
            "trainer": {"train_batch_size": 8, "num_train_steps": 4},
            "output": {"path": str(tmp_path_factory.mktemp("out"))},
        }
    )
    return dataset.plan(config)


@pytest.fixture
def build(empty_plan: dataset.Plan, tmp_path: Path, memory: str) -> Callable[[str, bytes], prepared.Manifest]:
    def run(name: str, content: bytes) -> prepared.Manifest:
        path = tmp_path / name
        path.write_bytes(content)
        (part,) = empty_plan.parts
        file = sources.DataFile(part.name, sources.TRAIN, str(path), identity=name)
        plan = dataclasses.replace(empty_plan, parts=(dataclasses.replace(part, files=(file,)),))
        return dataset.build(plan, memory)

    return run


def said(build: Callable[[str, bytes], prepared.Manifest], name: str, content: bytes) -> str:
    """What preparing says: its error's sentence, or its notes on what it left out."""
    try:
        return "; ".join(build(name, content).report["notes"])
    except errors.TrainerError as caught:
        error = caught
    assert error.exit_code is ExitCode.DATA, error
    assert len(error.message) <= 1024
    assert "\n" not in error.message
    return error.message


@pytest.mark.parametrize(("sentence", "row"), ROWS, ids=[str(number) for number in range(len(ROWS))])
def test_a_malformed_row_is_named_with_its_place(
    build: Callable[[str, bytes], prepared.Manifest], sentence: str, row: Any
) -> None:
    lines = GOOD.splitlines(keepends=True)[:4]
    lines.insert(2, json.dumps(row).encode() + b"\n")
    text = said(build, "rows.jsonl", b"".join(lines))
    assert "rows.jsonl:3" in text
    assert sentence in text


@pytest.mark.parametrize("case", FILES)
def test_a_malformed_file_is_named(build: Callable[[str, bytes], prepared.Manifest], case: str) -> None:
    name, content = FILES[case]
    assert name in said(build, name, content)


def test_there_are_enough_of_them() -> None:
    assert len(ROWS) + len(FILES) >= 200
