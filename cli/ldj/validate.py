"""`ldj validate`: what the API server and the operator would say of a job, without either."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ldj import jobfiles, saying
from ldj.jobfiles import Document, JobFileError, Output
from ldj.saying import Word, say
from lora_dpo_api import yaml12
from lora_dpo_api.errors import Problem, SpecError
from lora_dpo_api.notices import Notice
from lora_dpo_api.resolve import resolve

WRONG = 1
"""Exit code where a job is refused."""
UNREADABLE = 2
"""Exit code where a file can't be read."""

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="YAML or JSON; - is standard input.")]
Form = Annotated[Output | None, typer.Option("--output", "-o", help="The verdicts as data, on standard output.")]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of one job.

    Attributes:
        problems: why it is refused; empty where it is accepted.
        warnings: forced values and the guide's advice; only of a job that is accepted.
    """

    document: Document
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Notice, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the job would be accepted."""
        return not self.problems

    @property
    def data(self) -> dict[str, Any]:
        """The verdict for programs."""
        namespace = self.document.namespace
        return {
            "file": str(self.document.file),
            "name": self.document.name,
            **({"namespace": namespace} if namespace else {}),
            "valid": self.valid,
            "problems": [{"path": problem.path, "message": str(problem)} for problem in self.problems],
            "warnings": [
                {"code": notice.code, "path": notice.path, "message": notice.message} for notice in self.warnings
            ],
        }


def judge(document: Document) -> Verdict:
    """Apply the schema, its rules, the TPU catalogue, the storage rules and the guide to one job."""
    try:
        found = resolve(document.job())
    except SpecError as error:
        return Verdict(document, problems=error.problems)
    return Verdict(document, warnings=found.warnings)


def validate(files: Files, output: Form = None) -> None:
    """Check LoraDpoJobs offline, as the API server and the operator will.

    Exits with 1 where a job is refused and with 2 where a file can't be read. What only a cluster knows (Secrets,
    quota, whether the pods it makes are admitted) and what only `prepare` can see (rows, buckets) is not checked.
    """
    errors = saying.console()
    verdicts: list[Verdict] = []
    unreadable = False
    for file in files:
        try:
            jobs = [document for document in jobfiles.read(file) if document.is_job]
            if not jobs:
                raise JobFileError(f"{file}: holds no LoraDpoJob.")
        except JobFileError as error:
            unreadable = True
            say(errors, Word.ERROR, str(error))
        else:
            verdicts += map(judge, jobs)
    match output:
        case Output.JSON:
            print(json.dumps([verdict.data for verdict in verdicts], indent=2, ensure_ascii=False))
        case Output.YAML:
            print(yaml12.dumps([verdict.data for verdict in verdicts]), end="")
        case None:
            _show(verdicts)
    if unreadable:
        raise typer.Exit(UNREADABLE)
    if not all(verdict.valid for verdict in verdicts):
        raise typer.Exit(WRONG)


def _show(verdicts: Iterable[Verdict]) -> None:
    console = saying.console(stderr=False)
    for verdict in verdicts:
        where = f"{verdict.document.file}: {verdict.document.name}"
        for problem in verdict.problems:
            say(console, Word.ERROR, str(problem), where=where)
        for notice in verdict.warnings:
            say(console, Word.WARNING, str(notice), where=where)
        if verdict.valid:
            say(console, Word.VALID, "", where=where)
