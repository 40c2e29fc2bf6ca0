"""`ldj convert`: from the guide's YAML, as Levanter reads it, to a LoraDpoJob."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ldj import jobfiles, saying
from ldj.jobfiles import JobFileError, Output
from ldj.saying import Word, say
from lora_dpo_api import convert as conversion
from lora_dpo_api import yaml12
from lora_dpo_api.errors import ApiError
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.resolve import resolve
from lora_dpo_api.wire import NAME_LIMIT

WRONG = 1
"""Exit code where the file has no counterpart as a job."""
UNREADABLE = 2
"""Exit code where the file can't be read."""


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trainer configuration; - is standard input.")],
    tpu: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="The slice: v5p-8, v6e-16, …, or a machine type with topology, ct5p-hightpu-4t=2x2x1."
        ),
    ] = None,
    slices: Annotated[int, typer.Option(min=1, max=256, help="Slices to train on together.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on one CPU host, to try things out.")] = False,
    name: Annotated[str | None, typer.Option(help="The job's name. Default: from the file's.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="The job's namespace.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the file, such as lora.r=32."),
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="Form of the job.")] = Output.YAML,
) -> None:
    """Make a LoraDpoJob from the guide's YAML, and say what was left out.

    The job goes to standard output, the rest to standard error. Exits with 1 where the file asks for something that no
    job can do, and with 2 where it can't be read.
    """
    errors = saying.console()
    if (tpu is None) == (not cpu):
        raise typer.BadParameter("say where to train: --tpu TYPE or --cpu", param_hint="--tpu")
    try:
        found = conversion.to_job(
            jobfiles.text_of(file),
            name=name or name_of(file),
            namespace=namespace,
            hardware={"cpu": {}} if tpu is None else {"tpu": tpu_of(tpu, slices)},
            overrides=[f"--{word}" for word in override or ()],
        )
        resolve(LoraDpoJob.from_body(found.manifest))
    except JobFileError as error:
        say(errors, Word.ERROR, str(error))
        raise typer.Exit(UNREADABLE) from error
    except ApiError as error:
        for problem in error.problems:
            say(errors, Word.ERROR, str(problem), where=str(file))
        raise typer.Exit(WRONG) from error
    for key in found.dropped:
        say(errors, Word.DROPPED, f"{key}: has no meaning on a cluster")
    for note in found.notes:
        say(errors, Word.NOTE, note)
    text = yaml12.dumps(found.manifest) if output is Output.YAML else json.dumps(found.manifest, indent=2) + "\n"
    print(text, end="")


def name_of(file: Path) -> str:
    """A name for the job of a file: its own, as Kubernetes takes names."""
    name = re.sub(r"[^a-z0-9]+", "-", file.name.split(".")[0].lower()).lstrip("-0123456789")
    return name[:NAME_LIMIT].strip("-") or "lora-dpo"


def tpu_of(text: str, slices: int = 1) -> Mapping[str, Any]:
    """`spec.tpu` for a slice as it is said on the command line."""
    machine, equals, topology = text.partition("=")
    kind = {"machineType": machine, "topology": topology} if equals else {"acceleratorType": text}
    return kind | ({"slices": slices} if slices > 1 else {})
