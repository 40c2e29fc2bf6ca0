"""Rows as they lie in files and data sets: a stream of JSON objects, each with the place it came from."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

import zstandard

from lora_dpo_api.config_file import HubSource, UrlSource
from lora_dpo_trainer import errors, hub, storage

TRAIN = "train"
VALIDATION = "validation"
_PARQUET_BATCH = 1024
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclasses.dataclass(frozen=True)
class RawRow:
    """One row before validation.

    Attributes:
        where: `file:line`, or `dataset[index]`; for people to find it.
        value: The parsed row; `None` when the line is not a JSON object.
        detail: What keeps it from being one, where that is not plain to see.
    """

    where: str
    value: Mapping[str, Any] | None
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One input, known by its content.

    Attributes:
        component: Name of the mixture's component it belongs to.
        split: `train` or `validation`.
        url: Its URL; for a hub data set `hf://datasets/<id>`.
        identity: A checksum of the content, or the commit of a data set.
    """

    component: str
    split: str
    url: str
    identity: str
    hub_split: str | None = None


def list_files(component: str, source: UrlSource | HubSource) -> tuple[DataFile, ...]:
    """Every input of a component, globs expanded, in a stable order.

    Raises:
        DataNotFound: a URL matches nothing, or there is no such data set.
    """
    if isinstance(source, HubSource):
        return (_hub_file(component, source),)
    files = []
    for split, urls in ((TRAIN, source.train_urls), (VALIDATION, source.validation_urls)):
        for url in urls:
            matches = storage.expand(url)
            if not matches:
                raise errors.DataNotFound(f"data.components.{component}: no file matches {url}.")
            files += [DataFile(component, split, match, storage.identity(match)) for match in matches]
    if not files:
        raise errors.DataNotFound(f"data.components.{component} lists no train_urls and no validation_urls.")
    return tuple(files)


def read(file: DataFile) -> Iterator[RawRow]:
    """Stream the rows of one input: jsonl, jsonl.gz, jsonl.zst, parquet, or a hub data set."""
    if file.hub_split is not None:
        yield from _read_hub(file)
        return
    with storage.open_read(file.url) as stream:
        if file.url.endswith(".parquet"):
            yield from _read_parquet(file.url, stream)
        else:
            yield from _read_lines(file.url, _decompress(file.url, stream))


def _decompress(url: str, stream: BinaryIO) -> BinaryIO:
    if url.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    if url.endswith((".zst", ".zstd")):
        # The reader itself has no lines.
        return cast(BinaryIO, io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(stream)))
    return stream


def _read_lines(url: str, stream: BinaryIO) -> Iterator[RawRow]:
    name = _short(url)
    try:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _parse(f"{name}:{number}", line)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise errors.DataError(f"{url} is not a complete gzip file: {error}.") from error
    except zstandard.ZstdError as error:
        raise errors.DataError(f"{url} is not a complete zstd file: {error}.") from error


def _parse(where: str, line: bytes) -> RawRow:
    try:
        value = json.loads(line)
        if _SURROGATE.search(line):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        return RawRow(where, None, "nested too deeply")
    except UnicodeEncodeError:
        return RawRow(where, None, "half of a surrogate pair")
    except ValueError:  # also what is not UTF-8
        return RawRow(where, None)
    return RawRow(where, value if isinstance(value, dict) else None)


def _read_parquet(url: str, stream: BinaryIO) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name, number = _short(url), 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=_PARQUET_BATCH):
            for value in batch.to_pylist():
                number += 1
                yield RawRow(f"{name}:{number}", value)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # Arrow reports damage as an OSError too, but without the number that a real one has.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        fault = " ".join(str(error).split())[:300]
        raise errors.DataError(
            f"{url} is not a parquet file, or not a whole one (behind row {number}): {fault}."
        ) from error


def _hub_file(component: str, source: HubSource) -> DataFile:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    url = f"hf://datasets/{source.id}"
    try:
        info = hub.ask(
            lambda: huggingface_hub.HfApi().dataset_info(source.id, revision=source.revision),
            f"the data set {source.id}",
        )
    except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError) as error:
        where = f"data.components.{component}.source.id"
        raise errors.DataNotFound(
            f"{where}: no data set {source.id} at revision {source.revision or 'main'}.",
            hint="Check the id; a private or gated data set needs HF_TOKEN with access to it.",
        ) from error
    return DataFile(component, TRAIN, url, f"{source.split}@{info.sha}", hub_split=source.split)


def _read_hub(file: DataFile) -> Iterator[RawRow]:
    import datasets  # type: ignore[import-untyped]

    name = file.url.removeprefix("hf://datasets/")
    revision = file.identity.rsplit("@", 1)[-1]
    try:
        rows = datasets.load_dataset(name, split=file.hub_split, revision=revision, streaming=True)
    except datasets.exceptions.DatasetNotFoundError as error:  # it is there, as its commit was just read
        raise errors.MissingCredentials(
            f"The data set {name} is gated.", hint="Set HF_TOKEN to a token of an account that was given access."
        ) from error
    for index, value in enumerate(rows):
        yield RawRow(f"{name}[{index}]", value)


def _short(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]
