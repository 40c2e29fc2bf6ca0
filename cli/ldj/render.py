"""`ldj render`: what the operator would make of a job, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ldj import jobfiles, saying
from ldj.jobfiles import JobFileError, Output
from ldj.saying import Word, say
from lora_dpo_api import yaml12
from lora_dpo_api.errors import SpecError
from lora_dpo_operator.settings import Settings

WRONG = 1
"""Exit code where a job is refused."""
UNREADABLE = 2
"""Exit code where the file can't be read."""


def render(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="LoraDpoJobs as YAML or JSON; - is standard input.")],
    trainer_image: Annotated[
        str, typer.Option(help="The operator's default image of the trainer.")
    ] = Settings.trainer_image,
    simulate_tpu: Annotated[
        bool, typer.Option("--simulate-tpu", help="As an operator that lets TPU jobs run on CPU.")
    ] = False,
    output: Annotated[Output, typer.Option("--output", "-o", help="Form of the objects.")] = Output.YAML,
) -> None:
    """Show what the operator would make of a job: ConfigMap, prepare Job, JobSet, export Job.

    The slice starts after prepare has succeeded and the export after the slice, so that the three never run together.
    Exits with 1 where a job is refused and with 2 where the file can't be read.
    """
    # Here, because the Kubernetes client that the operator's modules know takes a second to import.
    from ldj import manifests

    errors = saying.console()
    settings = Settings(trainer_image=trainer_image, simulate_tpu=simulate_tpu)
    found: list[dict[str, Any]] = []
    try:
        documents = [document for document in jobfiles.read(file) if document.is_job]
        if not documents:
            raise JobFileError(f"{file}: holds no LoraDpoJob.")
    except JobFileError as error:
        say(errors, Word.ERROR, str(error))
        raise typer.Exit(UNREADABLE) from error
    refused = False
    for document in documents:
        try:
            made = manifests.of_job(document, settings)
        except SpecError as error:
            refused = True
            for problem in error.problems:
                say(errors, Word.ERROR, str(problem), where=f"{document.file}: {document.name}")
            continue
        found += made
        if not made:
            nothing = "spec.managedBy names another controller, so that this operator makes nothing"
            say(errors, Word.NOTE, nothing, where=f"{document.file}: {document.name}")
    print(_written(found, output), end="")
    if refused:
        raise typer.Exit(WRONG)


def _written(found: Iterable[dict[str, Any]], output: Output) -> str:
    if output is Output.JSON:
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(found)}, indent=2) + "\n"
    return "---\n".join(yaml12.dumps(manifest) for manifest in found)
