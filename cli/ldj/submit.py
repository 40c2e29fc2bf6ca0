"""`ldj submit`: from a file to a finished job, in one command."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich.console
import typer

from ldj import follow, jobfiles, options, saying, seen, story, validate
from ldj.errors import RefusedError, UnreachableError
from ldj.jobfiles import Document, JobFileError, Output
from ldj.saying import Word, printable, say
from lora_dpo_api import durations, yaml12
from lora_dpo_api.status import ConditionType, JobPhase, LoraDpoJobStatus

if TYPE_CHECKING:
    from ldj.kube import Kube

WRONG = 1
"""Exit code where a job is refused or has failed."""
UNREADABLE = 2
"""Exit code where the file can't be read."""
INTERRUPTED = 130

PATIENCE = 300.0
"""Seconds for which an API server may be away while a job is followed."""


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="LoraDpoJobs as YAML or JSON; - is standard input.")],
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Apply only; don't follow.")] = False,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Follow no longer than this, such as 8h. Default: to the end."),
    ] = None,
    output: Annotated[
        Output | None, typer.Option("--output", "-o", help="The objects as data on standard output, once all is over.")
    ] = None,
    namespace: options.Namespace = None,
    context: options.Context = None,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Check jobs, apply them, and follow them to their end.

    Exits with 0 where all of them succeeded; 1 where one is refused or has failed, or isn't over in time; 2 where the
    file can't be read; 3 where the cluster can't answer. Ctrl-C ends the following, never the job.
    """
    longest = _seconds(timeout)
    errors = saying.console()
    documents = _checked(file, errors)
    door = options.connect(namespace, context, kubeconfig)
    doors = [_door(door, document, namespace) for document in documents]
    for each, document in zip(doors, documents, strict=True):
        each.apply(document.body)
        say(errors, Word.NOTE, f"{each.namespace}/{document.name} applied")
    shown = saying.console(stderr=output is not None)
    followed = [] if detach else list(zip(doors, documents, strict=True))
    try:
        ends = [follow_one(each, document.name, shown, timeout=longest) for each, document in followed]
    except KeyboardInterrupt as stopped:
        say(errors, Word.NOTE, f"the job goes on without you: ldj status {documents[0].name}")
        raise typer.Exit(INTERRUPTED) from stopped
    objects = [seen.plain(each.job(document.name)) for each, document in zip(doors, documents, strict=True)]
    if output is Output.JSON:
        print(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2, ensure_ascii=False))
    elif output is Output.YAML:
        print("---\n".join(yaml12.dumps(each) for each in objects), end="")
    if not all(end.phase is JobPhase.SUCCEEDED for end in ends):
        raise typer.Exit(WRONG)


def follow_one(
    door: Kube, name: str, console: rich.console.Console, *, timeout: float, interval: float = 1.0
) -> LoraDpoJobStatus:
    """Follow one job to its end and tell its story.

    Raises:
        RefusedError: the operator doesn't take the job.
        FollowTimeoutError: it isn't over in time.
        LdjError: the job is gone, or the cluster has been away too long.
    """
    told: set[str] = set()

    def read() -> LoraDpoJobStatus:
        job = seen.read(door.job(name))
        raise_if_refused(job.metadata.generation, job.status)
        message = job.status.message
        if message and message not in told and job.phase is not JobPhase.RUNNING:
            told.add(message)
            console.print(printable(message), style="dim", markup=False)
        return job.status

    status = follow.follow(patient(read), console, timeout=timeout, interval=interval)
    console.print()
    console.print(story.tell(seen.read(door.job(name)), datetime.datetime.now().astimezone()))
    return status


def raise_if_refused(generation: int, status: LoraDpoJobStatus) -> None:
    """End where the operator has seen this very spec and doesn't take it: it would be followed for ever.

    Raises:
        RefusedError: with the operator's words.
    """
    accepted = status.condition(ConditionType.ACCEPTED)
    if accepted is not None and accepted.status == "False" and accepted.observed_generation >= generation:
        raise RefusedError(f"The operator doesn't take the job: {accepted.message}")


def patient(
    read: Callable[[], LoraDpoJobStatus],
    *,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], LoraDpoJobStatus]:
    """The same reading, but an API server that is away for a while (an upgrade, a laptop's lid) ends nothing.

    Args:
        read: reads the status.
        patience: seconds for which the last status is taken instead.
        clock: seconds, going forward.
    """
    last = LoraDpoJobStatus()
    answered = clock()

    def reading() -> LoraDpoJobStatus:
        nonlocal last, answered
        try:
            last = read()
        except UnreachableError:
            if clock() - answered > patience:
                raise
            return last
        answered = clock()
        return last

    return reading


def _checked(file: Path, errors: rich.console.Console) -> list[Document]:
    """The jobs of the file, all of them right; what else there is in it is said."""
    try:
        documents = jobfiles.read(file)
    except JobFileError as error:
        say(errors, Word.ERROR, str(error))
        raise typer.Exit(UNREADABLE) from error
    jobs = [document for document in documents if document.is_job]
    if not jobs:
        say(errors, Word.ERROR, f"{file}: holds no LoraDpoJob.")
        raise typer.Exit(UNREADABLE)
    for other in documents:
        if not other.is_job:
            kind = f"{other.body.get('kind', 'object')} {other.name}"
            say(errors, Word.NOTE, f"{kind} is no LoraDpoJob and is left alone; kubectl applies it", where=str(file))
    verdicts = [validate.judge(document) for document in jobs]
    for verdict in verdicts:
        where = f"{file}: {verdict.document.name}"
        for problem in verdict.problems:
            say(errors, Word.ERROR, str(problem), where=where)
        for notice in verdict.warnings:
            say(errors, Word.WARNING, str(notice), where=where)
    if not all(verdict.valid for verdict in verdicts):
        raise typer.Exit(WRONG)
    return jobs


def _door(door: Kube, document: Document, asked: str | None) -> Kube:
    """The namespace that a job says, else the one of the command line."""
    own = document.namespace
    if own is not None and asked is not None and own != asked:
        raise RefusedError(
            f"{document.name} belongs to the namespace {own}, and --namespace is {asked}. Leave one of them out."
        )
    return dataclasses.replace(door, namespace=own or door.namespace)


def _seconds(timeout: str | None) -> float:
    if timeout is None:
        return math.inf
    try:
        return durations.seconds(timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from error
