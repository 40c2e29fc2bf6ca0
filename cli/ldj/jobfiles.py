"""LoraDpoJobs in files, as users keep them: several to a file, with other objects between them."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_dpo_api import yaml12
from lora_dpo_api.errors import Problem, SpecError
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.wire import API_VERSION, GROUP, KIND

STDIN = Path("-")
_LISTS = ("List", f"{KIND}List")
_SHOWN = 300


class JobFileError(Exception):
    """A file can't be read as objects; the message names file and reason."""


class Output(enum.StrEnum):
    """Forms for programs."""

    JSON = "json"
    YAML = "yaml"


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One object of a file.

    Attributes:
        file: where it was read; `-` for standard input.
        body: the object as written.
    """

    file: Path
    body: dict[str, Any]

    @property
    def is_job(self) -> bool:
        """Whether it is a LoraDpoJob, or was meant as one: another kind says so."""
        version, kind = str(self.body.get("apiVersion", GROUP)), str(self.body.get("kind", KIND))
        return kind == KIND or version.partition("/")[0] == GROUP

    @property
    def name(self) -> str:
        """The object's name, or a dash."""
        metadata = self.body.get("metadata")
        return str(metadata.get("name", "-")) if isinstance(metadata, dict) else "-"

    @property
    def namespace(self) -> str | None:
        """The object's namespace, where the file says it."""
        metadata = self.body.get("metadata")
        return str(metadata["namespace"]) if isinstance(metadata, dict) and metadata.get("namespace") else None

    def job(self) -> LoraDpoJob:
        """The job, checked as its schema does.

        Raises:
            SpecError: with a problem for each wrong field.
        """
        if "initialize_from_hf" in self.body and "spec" not in self.body:
            reason = "is a trainer configuration, not a LoraDpoJob; make one of it with `ldj convert`"
            raise SpecError([Problem("the file", reason)])
        missing = [
            Problem(key, f"is required: {value}")
            for key, value in (("apiVersion", API_VERSION), ("kind", KIND))
            if key not in self.body
        ]
        try:
            job = LoraDpoJob.from_body(self.body)
        except SpecError as error:
            raise SpecError([*missing, *error.problems]) from error
        if missing:
            raise SpecError(missing)
        return job


def read(file: Path) -> tuple[Document, ...]:
    """Read the objects of a file, those in lists too.

    Args:
        file: YAML or JSON; `-` is standard input.

    Raises:
        JobFileError: the file can't be read, isn't YAML, or holds something that is no object.
    """
    documents = tuple(_documents(file, text_of(file)))
    if not documents:
        raise JobFileError(f"{file}: holds no objects.")
    return documents


def text_of(file: Path) -> str:
    """The text of a file.

    Raises:
        JobFileError: it can't be read.
    """
    try:
        return sys.stdin.read() if file == STDIN else file.read_text(encoding="utf-8")
    except OSError as error:
        raise JobFileError(f"{file}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise JobFileError(f"{file}: is not text in UTF-8.") from error


def _documents(file: Path, text: str) -> Iterator[Document]:
    try:
        found = yaml12.loads_all(text)
    except yaml12.YAMLError as error:
        raise JobFileError(f"{file}: is not YAML: {' '.join(str(error).split())[:_SHOWN]}") from error
    for body in found:
        if body is None:
            continue
        if not isinstance(body, dict):
            raise JobFileError(f"{file}: must hold objects with apiVersion and kind, not {type(body).__name__}.")
        if body.get("kind") in _LISTS and isinstance(body.get("items"), list):
            yield from (Document(file, item) for item in body["items"] if isinstance(item, dict))
        else:
            yield Document(file, body)
