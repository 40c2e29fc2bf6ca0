from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lora_dpo_api.config_file import UrlSource
from lora_dpo_trainer import errors, sources, storage


def read_all(url: str) -> list[sources.RawRow]:
    (file,) = sources.list_files("prefs", UrlSource(train_urls=[url]))
    return list(sources.read(file))


def test_jsonl_rows_know_their_line(write_jsonl: Callable[..., Path]) -> None:
    rows = read_all(str(write_jsonl([{"a": 1}, {"a": 2}])))
    assert [(row.where, row.value) for row in rows] == [("rows.jsonl:1", {"a": 1}), ("rows.jsonl:2", {"a": 2})]


def test_blank_lines_are_skipped_and_still_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in read_all(str(path))] == ["rows.jsonl:1", "rows.jsonl:3"]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"a": 1'])
def test_a_line_that_is_no_object_has_no_value(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    assert [row.value for row in read_all(str(path))] == [None]


def test_gzipped_rows_are_read_from_an_object_store(memory: str) -> None:
    url = storage.join(memory, "rows.jsonl.gz")
    storage.write_bytes(url, gzip.compress(b'{"a": 1}\n'))
    assert [row.value for row in read_all(url)] == [{"a": 1}]


def test_rows_compressed_with_zstd_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [(row.where, row.value) for row in read_all(str(path))] == [
        ("rows.jsonl.zst:1", {"a": 1}),
        ("rows.jsonl.zst:2", {"a": 2}),
    ]


def test_a_cut_gzip_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-10])
    with pytest.raises(errors.DataError, match=r"rows\.jsonl\.gz is not a complete gzip file"):
        read_all(str(path))


def test_parquet_rows_keep_nested_messages(tmp_path: Path, row: Callable[..., dict[str, Any]]) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row(), row("other")]), path)
    rows = read_all(str(path))
    assert [r.where for r in rows] == ["rows.parquet:1", "rows.parquet:2"]
    assert json.loads(json.dumps(rows[0].value)) == row()


def test_what_is_no_parquet_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR?")
    with pytest.raises(errors.DataError, match="is not a parquet file"):
        read_all(str(path))


def test_a_url_without_match_names_component_and_url(tmp_path: Path) -> None:
    with pytest.raises(errors.DataNotFound, match=r"components\.prefs: no file matches .*\*\.jsonl"):
        sources.list_files("prefs", UrlSource(train_urls=[f"{tmp_path}/*.jsonl"]))


def test_train_and_validation_files_are_told_apart(write_jsonl: Callable[..., Path]) -> None:
    source = UrlSource(
        train_urls=[str(write_jsonl([{"a": 1}], "t.jsonl"))], validation_urls=[str(write_jsonl([{"a": 2}], "v.jsonl"))]
    )
    files = sources.list_files("prefs", source)
    assert [file.split for file in files] == ["train", "validation"]
    assert files[0].identity != files[1].identity
