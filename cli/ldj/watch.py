"""`ldj watch`: all jobs in one table that changes in place."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import rich.console
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ldj import follow, options, saying, seen, story
from ldj.saying import printable
from ldj.seen import SeenJob
from lora_dpo_api import durations
from lora_dpo_api.status import JobPhase
from lora_dpo_operator import overview

COLUMNS = ("namespace", "name", "phase", "step", "loss", "margin", "accuracy", "ETA", "age", "message")


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One job of the table."""

    namespace: str
    name: str
    row: follow.Row
    age: str
    message: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The values in the order of `COLUMNS`."""
        row = self.row
        values = (row.phase, row.step, row.loss, row.margin, row.accuracy, row.eta)
        return tuple(map(printable, (self.namespace, self.name, *values, self.age, self.message)))


def lines(jobs: Iterable[SeenJob], now: datetime.datetime) -> list[Line]:
    """The jobs as the table shows them, those that hold a slice first, newest first among equals."""
    oldest = datetime.datetime.min.replace(tzinfo=datetime.UTC)

    def place(job: SeenJob) -> tuple[int, float, str, str]:
        made = job.metadata.creation_timestamp or oldest
        age = (now - made).total_seconds()
        return overview.ORDER.index(job.phase), age, job.metadata.namespace, job.name

    def age(job: SeenJob) -> str:
        made = job.metadata.creation_timestamp
        return durations.text((now - made).total_seconds()) if made else ""

    return [
        Line(job.metadata.namespace, job.name, follow.row(job.status), age(job), job.status.message or "")
        for job in sorted(jobs, key=place)
    ]


def table(found: Sequence[Line], *, width: int, height: int) -> Table:
    """The table, cut to a terminal's size; below it the number of jobs by phase."""
    view = Table(box=None, pad_edge=False, header_style="bold", caption=caption(found, height), caption_justify="left")
    shown = [(line.row.phase, *line.cells) for line in found[:height]]
    taken = sum(
        max(map(len, column)) + 2 for column in zip(COLUMNS[:-1], *(cells[1:-1] for cells in shown), strict=True)
    )
    for column in COLUMNS:
        view.add_column(column, no_wrap=True, overflow="ellipsis")
    for phase, *cells, message in shown:
        style = story.STYLES.get(JobPhase(phase), "")
        view.add_row(*(Text(cell, style if cell == phase else "") for cell in cells), _cut(message, width - taken))
    return view


def _cut(text: str, width: int) -> Text:
    """The text in so many columns, all of it where that leaves hardly any."""
    return Text(text if len(text) <= width or width < 8 else f"{text[: width - 1]}…")


def caption(found: Sequence[Line], height: int) -> str:
    """How many jobs there are, by phase, and how many the table doesn't show."""
    counts = collections.Counter(line.row.phase for line in found)
    by_phase = ", ".join(f"{counts[phase]} {phase}" for phase in overview.ORDER if counts[phase])
    hidden = f"; {len(found) - height} more not shown" if len(found) > height else ""
    return f"{len(found)} jobs: {by_phase}{hidden}" if found else "no LoraDpoJobs yet"


def watch(
    everywhere: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Jobs of all namespaces, not of one.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.5, max=3600, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Each change of a job as a line of JSON, for programs.")
    ] = False,
    namespace: options.Namespace = None,
    context: options.Context = None,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Watch all jobs: phase, step, loss, margin, accuracy, time to go. Ctrl-C ends it.

    On a terminal the table changes in place; elsewhere each change of a job is a line.
    """
    door = options.connect(namespace, context, kubeconfig)
    console = saying.console(stderr=False)

    def look() -> list[Line]:
        found = [seen.read(raw) for raw in door.jobs(everywhere=everywhere)]
        return lines(found, datetime.datetime.now(datetime.UTC))

    if once and not as_json:
        console.print(table(look(), width=console.width, height=10_000))
    elif console.is_terminal and not as_json:
        _live(look, console, interval)
    else:
        told: dict[tuple[str, str], follow.Row] = {}
        while True:
            _tell_changes(look(), told, as_json=as_json)
            if once:
                return
            time.sleep(interval)


def _live(look: Callable[[], list[Line]], console: rich.console.Console, interval: float) -> None:
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            live.update(table(look(), width=console.width, height=max(1, console.height - 3)), refresh=True)
            time.sleep(interval)


def _tell_changes(found: Sequence[Line], told: dict[tuple[str, str], follow.Row], *, as_json: bool) -> None:
    """Print each job whose row isn't the one that was told; forget those that are gone."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    present = {(line.namespace, line.name) for line in found}
    for key in set(told) - present:
        del told[key]
        _print({"time": now, "namespace": key[0], "name": key[1], "phase": "Deleted"}, as_json=as_json)
    for line in found:
        key = (line.namespace, line.name)
        if told.get(key) != line.row:
            told[key] = line.row
            row = {name: value for name, value in dataclasses.asdict(line.row).items() if value}
            _print({"time": now, "namespace": line.namespace, "name": line.name, **row}, as_json=as_json)


def _print(change: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(change, ensure_ascii=False), flush=True)
        return
    moment, namespace, name, phase, *rest = change.items()
    words = [f"{key} {value}" for key, value in rest]
    print(printable(f"{moment[1]}  {namespace[1]}/{name[1]}  {phase[1]}  {', '.join(words)}".rstrip()), flush=True)
