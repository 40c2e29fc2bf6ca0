"""`ldj run`: the same job as processes of this machine, without a cluster.

The three phases run one after another through the trainer's own entry point, with the configuration that the operator
would write. Whoever stops it loses nothing: the trainer saves, and the next `ldj run` goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import rich.console
import typer
from pydantic import ValidationError
from rich.progress import BarColumn, Progress, TextColumn

from ldj import follow, jobfiles, saying, validate
from ldj.errors import LdjError
from ldj.jobfiles import JobFileError
from ldj.saying import Word, printable, say
from lora_dpo_api import durations
from lora_dpo_api.protocol import STATUS_LIMIT, Environment, ExitCode, Phase, ProgressReport, TerminationReport
from lora_dpo_api.resolve import Resolved, resolve

WRONG = 1
"""Exit code where the job is refused or has failed."""
UNREADABLE = 2
"""Exit code where the file can't be read."""
INTERRUPTED = 130

PYTHON_VARIABLE = "LDJ_TRAINER_PYTHON"
_CHECKOUT_PYTHON = Path(".venv", "trainer", "bin", "python")
_LOOK_SECONDS = 1.0


class TrainerMissingError(LdjError):
    """No Python with the trainer's packages is known."""


class TrainingFailedError(LdjError):
    """A phase ended with an error; the message has the trainer's own words."""


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How a phase ended.

    Attributes:
        code: the process's exit code; negative after a signal.
        report: what the trainer left behind, if it did.
    """

    phase: Phase
    code: int
    report: TerminationReport | None

    @property
    def sentence(self) -> str:
        """Why it failed and what to do."""
        if self.report is None:
            ended = f"was ended by signal {-self.code}" if self.code < 0 else f"ended with exit code {self.code}"
            return f"{self.phase.value} {ended} and left no word; its last lines are above."
        hint = f" {self.report.hint}" if self.report.hint else ""
        return printable(f"{self.phase.value} failed: {self.report.reason}: {self.report.message}{hint}")


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One LoraDpoJob as YAML or JSON; - is standard input.")],
    python: Annotated[
        Path | None,
        typer.Option(
            envvar=PYTHON_VARIABLE, help="Python with the trainer's packages. Default: this one, or .venv/trainer's."
        ),
    ] = None,
) -> None:
    """Run a job on this machine: prepare, train, export, with a progress bar on a terminal.

    Ctrl-C saves and stops; the same command goes on from there. Paths are this machine's, credentials your own.

    Exits with 0 once the adapter is written; 1 where the job is refused or fails; 2 where the file can't be read; 130
    after Ctrl-C.
    """
    resolved = _resolved(file)
    program = interpreter(python)
    console = saying.console(stderr=False)
    written: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="ldj-run-") as folder, _interruptible():
        config = Path(folder) / "config.yaml"
        config.write_text(resolved.config_yaml, encoding="utf-8")
        for phase in Phase:
            end = _run_phase(program, config, phase, console, on_cpu=resolved.job.spec.cpu is not None)
            if end.code == ExitCode.PREEMPTED:
                say(saying.console(), Word.NOTE, f"stopped in {phase.value}; the same command goes on from there")
                raise typer.Exit(INTERRUPTED)
            if end.code != ExitCode.DONE:
                raise TrainingFailedError(end.sentence)
            written |= {each.kind: each.path for each in (end.report.artifacts if end.report else ())}
    for kind, path in written.items():
        console.print(printable(f"{kind}: {path}"), markup=False)


def interpreter(chosen: Path | None, *, here: str = sys.executable, checkout: Path = Path()) -> Path:
    """The Python that has the trainer's packages.

    Args:
        chosen: the user's choice.
        here: the Python that runs this.
        checkout: where `make setup` may have been run.

    Raises:
        TrainerMissingError: none is known; the message says how to make one.
    """
    if chosen is not None:
        if shutil.which(chosen) is None:
            raise TrainerMissingError(f"{chosen} is no program. Name a Python that has the trainer's packages.")
        return chosen
    if importlib.util.find_spec("levanter") is not None:
        return Path(here)
    made = checkout / _CHECKOUT_PYTHON
    if made.is_file():
        return made.absolute()
    raise TrainerMissingError(
        "The trainer isn't installed here. In a checkout, `make setup` installs it into .venv/trainer; elsewhere "
        f"`pip install 'lora-dpo-operator[trainer]'` does, and --python or {PYTHON_VARIABLE} says where it is."
    )


def _resolved(file: Path) -> Resolved:
    errors = saying.console()
    try:
        documents = [document for document in jobfiles.read(file) if document.is_job]
        if len(documents) != 1:
            raise JobFileError(f"{file}: must hold one LoraDpoJob, and holds {len(documents)}.")
    except JobFileError as error:
        say(errors, Word.ERROR, str(error))
        raise typer.Exit(UNREADABLE) from error
    verdict = validate.judge(documents[0])
    for problem in verdict.problems:
        say(errors, Word.ERROR, str(problem), where=str(file))
    for notice in verdict.warnings:
        say(errors, Word.WARNING, str(notice), where=str(file))
    if not verdict.valid:
        raise typer.Exit(WRONG)
    return resolve(documents[0].job())


def _run_phase(program: Path, config: Path, phase: Phase, console: rich.console.Console, *, on_cpu: bool) -> End:
    """Run one phase to its end; an interrupt is handed on once, and ends it at once the second time."""
    left = config.with_name(f"{phase.value}.json")
    port = _free_port()
    env = os.environ | {"LORADPO_TERMINATION_LOG": str(left), "LORADPO_PROGRESS_PORT": str(port)}
    if on_cpu:
        env[Environment.PLATFORM] = "cpu"
    command = [str(program), "-m", "lora_dpo_trainer", "--config_path", str(config), "--phase", phase.value]
    if shutil.which("setpriv"):  # should this process die, the trainer saves and ends
        command = ["setpriv", "--pdeathsig", "TERM", "--", *command]
    with (
        _bar(console, phase, port),
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process,
    ):
        stops = (signal.SIGTERM, signal.SIGKILL)
        for stop in (*stops, None):
            try:
                for line in process.stdout or ():
                    console.print(printable(line.rstrip("\n").expandtabs()), markup=False)
                code = process.wait()
                break
            except KeyboardInterrupt:
                assert stop is not None, "who was killed has ended"
                say(saying.console(), Word.NOTE, "saving; Ctrl-C again stops at once, and loses the steps since")
                process.send_signal(stop)
    return End(phase, code, _report(left))


def _report(file: Path) -> TerminationReport | None:
    try:
        return TerminationReport.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Take a SIGTERM, and a terminal that is closed, for a Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _bar(console: rich.console.Console, phase: Phase, port: int) -> Iterator[None]:
    """A progress bar below the trainer's lines while it trains, on a terminal."""
    if phase is not Phase.TRAIN or not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    over = threading.Event()
    with Progress(*columns, TextColumn("{task.fields[values]}"), console=console) as bar:
        task = bar.add_task("starting", total=1, values="")

        def watch() -> None:
            while not over.wait(_LOOK_SECONDS):
                report = progress(port)
                if report is not None:
                    bar.update(
                        task,
                        description=report.state.value,
                        completed=report.step,
                        total=max(1, report.total_steps),
                        values=values(report),
                    )

        watcher = threading.Thread(target=watch, name="progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def values(report: ProgressReport) -> str:
    """What stands beside the bar."""
    metrics = report.metrics
    shown = (("loss", metrics.loss), ("margin", metrics.reward_margin), ("accuracy", metrics.accuracy))
    words = [f"{name} {follow.number(value)}" for name, value in shown if value is not None]
    if report.eta_seconds is not None:
        words.append(f"{durations.text(report.eta_seconds)} left")
    return ", ".join(words)


def progress(port: int) -> ProgressReport | None:
    """What the trainer of this machine reports; None while it doesn't."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=2) as answer:
            return ProgressReport.model_validate_json(answer.read(STATUS_LIMIT))
    except (urllib.error.URLError, OSError, ValidationError):
        return None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
