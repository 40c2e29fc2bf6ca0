"""`ldj render`: the objects that the operator would make of a job, by the operator's own builders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ldj import jobfiles, saying
from ldj.jobfiles import Document, JobFileError, Output
from ldj.saying import Word, say
from lora_dpo_api import yaml12
from lora_dpo_api.errors import SpecError
from lora_dpo_api.resolve import resolve
from lora_dpo_operator import accept, configmap, export_job, jobset, names, prepare_job
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.observed import Accepted
from lora_dpo_operator.settings import Settings

WRONG = 1
"""Exit code where a job is refused."""
UNREADABLE = 2
"""Exit code where the file can't be read."""

UID = "00000000-0000-0000-0000-000000000000"
"""In place of the job's uid, which the API server gives."""
DIGEST = "known-after-prepare"
"""In place of the digest of the prepared rows."""
DEFAULTS = Settings()

Manifest = dict[str, Any]


def manifests(document: Document, settings: Settings) -> tuple[Manifest, ...]:
    """ConfigMap, prepare Job, JobSet and export Job of one job; nothing where another controller runs it.

    Args:
        document: the job.
        settings: the operator's.

    Raises:
        SpecError: the job is refused.
    """
    job = document.job()
    resolve(job)
    verdict = accept.judge(document.body, settings)
    assert isinstance(verdict, Accepted), "what resolves is accepted"
    if verdict.spec.managed_by is not None:
        return ()
    blueprint = Blueprint(
        name=job.metadata.name,
        namespace=job.metadata.namespace,
        uid=UID,
        spec=verdict.spec,
        placement=verdict.placement,
        config=verdict.config,
        config_map=names.config_map(job.metadata.name, verdict.config),
        image=verdict.spec.pod_template.image or settings.trainer_image,
        spec_hash=verdict.spec_hash,
        trainer_env=settings.trainer_env,
        queue_name=verdict.queue_name,
        prepared_digest=DIGEST,
    )
    return (
        configmap.build(blueprint),
        prepare_job.build(blueprint),
        jobset.build(blueprint),
        export_job.build(blueprint),
    )


def render(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="LoraDpoJobs as YAML or JSON; - is standard input.")],
    trainer_image: Annotated[
        str, typer.Option(help="The operator's default image of the trainer.")
    ] = DEFAULTS.trainer_image,
    simulate_tpu: Annotated[
        bool, typer.Option("--simulate-tpu", help="As an operator that lets TPU jobs run on CPU.")
    ] = False,
    output: Annotated[Output, typer.Option("--output", "-o", help="Form of the objects.")] = Output.YAML,
) -> None:
    """Show what the operator would make of a job: ConfigMap, prepare Job, JobSet, export Job.

    The slice starts after prepare has succeeded and the export after the slice, so that the three never run together.
    Exits with 1 where a job is refused and with 2 where the file can't be read.
    """
    errors = saying.console()
    settings = Settings(trainer_image=trainer_image, simulate_tpu=simulate_tpu)
    found: list[Manifest] = []
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
            made = manifests(document, settings)
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


def _written(found: Iterable[Manifest], output: Output) -> str:
    if output is Output.JSON:
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(found)}, indent=2) + "\n"
    return "---\n".join(yaml12.dumps(manifest) for manifest in found)
