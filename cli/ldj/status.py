"""`ldj status`: the story of one job."""

from __future__ import annotations

import datetime
import json
from typing import Annotated

import typer

from ldj import options, saying, seen, story
from ldj.jobfiles import Output
from lora_dpo_api import yaml12


def status(
    job: options.Name,
    output: Annotated[
        Output | None, typer.Option("--output", "-o", help="The whole object as data, as the cluster holds it.")
    ] = None,
    namespace: options.Namespace = None,
    context: options.Context = None,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Tell the story of a job: its phases with their times, metrics, advice, and why it failed, with what to do.

    Exits with 0 whatever the job is like; 3 where the cluster can't answer, 4 where there is no such job.
    """
    manifest = options.connect(namespace, context, kubeconfig).job(job)
    match output:
        case Output.JSON:
            print(json.dumps(seen.plain(manifest), indent=2, ensure_ascii=False))
        case Output.YAML:
            print(yaml12.dumps(seen.plain(manifest)), end="")
        case None:
            now = datetime.datetime.now().astimezone()
            saying.console(stderr=False).print(story.tell(seen.read(manifest), now))
