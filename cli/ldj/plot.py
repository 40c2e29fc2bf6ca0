"""`ldj plot`: loss, reward margin and accuracy of a job, from the job's own status alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ldj import options, saying, seen
from ldj.errors import RefusedError
from ldj.jobfiles import Output
from ldj.saying import Word, printable, say
from ldj.seen import SeenJob
from lora_dpo_api import yaml12
from lora_dpo_operator import curves

WIDTH = 100
HEIGHT = 10
"""Lines of each picture."""


def plot(
    job: options.Name,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Write a PNG picture instead of drawing here.")
    ] = None,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="The points as data.")] = None,
    namespace: options.Namespace = None,
    context: options.Context = None,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Draw loss, reward margin and accuracy over the steps, in the terminal or as a picture.

    The dotted line is where the untrained policy lies: a loss of ln 2, no margin, an accuracy of one half. The status
    of a job holds a thinned curve; Prometheus and the output's metrics.jsonl have every step.

    Exits with 1 where the job has no curve yet; 3 where the cluster can't answer, 4 where there is no such job.
    """
    found = seen.read(options.connect(namespace, context, kubeconfig).job(job))
    panels = curves.panels(found.status.curve)
    if output is not None:
        points = points_of(found)
        print(json.dumps(points, indent=2) if output is Output.JSON else yaml12.dumps(points).rstrip("\n"))
        return
    if not panels:
        raise RefusedError(f"{job} has no curve yet: it is {found.phase.value}, {found.status.message or 'no message'}")
    if png is not None:
        # Here, because half of the time nobody wants a picture.
        from ldj import png_plot

        try:
            png.write_bytes(png_plot.draw(panels, title_of(found)))
        except OSError as error:
            raise RefusedError(f"{png} can't be written: {error.strerror or error}.") from error
        say(saying.console(), Word.NOTE, f"{png} written")
        return
    print(in_terminal(found, width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)))


def in_terminal(job: SeenJob, *, width: int) -> str:
    """All panels, one below the other, with a title."""
    from ldj import terminal_plot

    drawn = (
        terminal_plot.draw(panel, width=max(24, width), height=HEIGHT) for panel in curves.panels(job.status.curve)
    )
    return "\n\n".join([title_of(job), *drawn])


def title_of(job: SeenJob) -> str:
    """Which job it is, and how far."""
    progress = f", step {job.status.progress}" if job.status.progress else ""
    return printable(f"{job.metadata.namespace}/{job.name}, {job.phase.value}{progress}")


def points_of(job: SeenJob) -> list[dict[str, Any]]:
    """The curve for programs."""
    return [point.model_dump(mode="json", by_alias=True, exclude_none=True) for point in job.status.curve]
