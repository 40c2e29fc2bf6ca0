"""Kills real trainer processes at random moments until each run has ended, and compares what they made.

An undisturbed run of the train phase comes first. Then runs of the same configuration are killed, with SIGKILL and
SIGTERM, and started again, as the operator would. However often that happens, the adapter and the metrics must be those
of the undisturbed run, bit for bit (CPU, one process). The moments are spread over all that an attempt does, from the
start of the process to the written adapter; they come from a seed and are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_dpo_api import yaml12
from lora_dpo_api.protocol import ExitCode, TerminationReport, TrainerState
from lora_dpo_trainer import metrics

ROOT = Path(__file__).resolve().parent.parent
CASE = ROOT / "tests" / "data" / "parity" / "llama-r8"
_ROWS = 256
REPORT = ROOT / "build" / "reports" / "chaos-trainer.json"
_EVALUATIONS = 3
_SPANS = {
    "": 4.0,
    TrainerState.LOADING: 1.0,
    TrainerState.REFERENCE: 1.5,
    TrainerState.COMPILING: 1.0,
    TrainerState.TRAINING: 0.3,
    TrainerState.EVALUATING: 0.5,
    TrainerState.SAVING: 0.8,
}
"""State → seconds within which a signal comes after an attempt has logged it; "" is the start of the process."""

_LOOP = (TrainerState.TRAINING, TrainerState.EVALUATING)
_TRAINING_SHARE = 0.4
_ATTEMPT_SECONDS = 600.0
_POLL_SECONDS = 0.002


class BrokenRunError(Exception):
    """A run did not end as it must."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: told by how far an attempt is, so that it means the same on a slow machine.

    Attributes:
        number: Which signal.
        state: Once the attempt logs this state; at its start when empty.
        lines: And the history has so many lines.
        seconds: And so much later.
    """

    number: signal.Signals
    state: str
    lines: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Kill:
    """A signal that reached a running attempt.

    Attributes:
        run: Which run.
        attempt: Which attempt of it.
        signal: Its name.
        state: The last one that the attempt had logged when it came; empty before the first.
        seconds: After the start of the process.
        lines: Of the history when it came.
        exit_code: How the process ended.
        message: Its last words, where it had time for some.
    """

    run: int
    attempt: int
    signal: str
    state: str
    seconds: float
    lines: int
    exit_code: int
    message: str


@dataclasses.dataclass(frozen=True)
class Made:
    """What a run made, without speeds and times."""

    adapter: str
    history: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it; every run made the same.

    Attributes:
        steps: Of each run.
        runs: The undisturbed one not counted.
        attempts: Processes of these runs.
        kills: In order.
        adapter_sha256: Of the file.
        resumed_from_step: Where the last attempt of each run started; 0 for the first step.
        seconds: In all.
    """

    steps: int
    runs: int
    attempts: int
    kills: tuple[Kill, ...]
    adapter_sha256: str
    resumed_from_step: tuple[int, ...]
    seconds: float

    def __str__(self) -> str:
        names = [kill.signal for kill in self.kills]
        kills = " and ".join(f"{names.count(name)} {name}" for name in ("SIGKILL", "SIGTERM"))
        return (
            f"{kills} in {self.runs} runs of {self.steps} steps ({self.attempts} attempts, {self.seconds:.0f} s): "
            f"every adapter and history equal to the undisturbed one, bit for bit (sha256 {self.adapter_sha256[:16]})"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """One output folder, and how to start an attempt in it."""

    folder: Path

    @property
    def output(self) -> Path:
        """Where results go."""
        return self.folder / "out"

    @property
    def history(self) -> Path:
        """The metrics, a line a step."""
        return self.output / "metrics.jsonl"

    @property
    def cache(self) -> Path:
        """Of this run alone: so that it computes the reference itself."""
        return self.folder / "cache"

    def configure(self, steps: int) -> None:
        """Write the configuration."""
        self.folder.mkdir()
        rows = self.folder.parent / "rows.jsonl"
        rows.write_text("".join(f"{json.dumps(_row(number))}\n" for number in range(_ROWS)))
        source = {"type": "url", "train_urls": [str(rows)]}
        values: dict[str, Any] = {
            "run_id": "chaos",
            "data": {"components": {"prefs": {"source": source}}},
            "initialize_from_hf": str(CASE / "base"),
            "train_seq_len": 128,
            "trainer": {"train_batch_size": 8, "num_train_steps": steps, "mp": "p=f32,c=f32", "seed": 3},
            "optimizer": {"learning_rate": 1e-3, "warmup": 0},
            "lora": {"r": 8, "dropout": 0.1, "target_modules": ["q_proj"]},
            "eval": {"every_steps": steps // _EVALUATIONS},
            "validation_split_fraction": 0.5,
            # Nearly always a checkpoint is being written, and never is there a spare one.
            "output": {"path": str(self.output), "checkpoint": {"every_seconds": 0.05, "keep": 1}},
            "cache": {"path": str(self.cache)},
        }
        (self.folder / "config.yaml").write_text(yaml12.dumps(values))

    def start(self, phase: str, attempt: int = 0) -> subprocess.Popen[str]:
        """Start an attempt; its log goes to a file."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LORADPO_")}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "LORADPO_PROGRESS_PORT": "0",
            "LORADPO_RESTART_ATTEMPT": str(attempt),
            "LORADPO_TERMINATION_LOG": str(self.folder / "termination"),
        }
        words = ["--config_path", str(self.folder / "config.yaml"), "--phase", phase]
        with (self.folder / f"{phase}-{attempt}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "lora_dpo_trainer", *words],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def finish(self, process: subprocess.Popen[str], phase: str, attempt: int = 0) -> None:
        """Wait for an attempt that nobody kills."""
        code = process.wait(timeout=_ATTEMPT_SECONDS)
        if code != 0:
            log = (self.folder / f"{phase}-{attempt}.log").read_text()
            raise BrokenRunError(f"{self.folder.name}, attempt {attempt}: {phase} ended with {code}:\n{log[-3000:]}")

    def prepared_as(self, other: Run) -> None:
        """Take what another run prepared and compiled; the paths in there are relative."""
        self.output.mkdir()
        shutil.copy(other.output / "run.json", self.output)
        for part in ("prepared", "compile"):
            shutil.copytree(other.cache / part, self.cache / part)

    def lines(self) -> int:
        """Complete lines of the history."""
        return self.history.read_bytes().count(b"\n") if self.history.exists() else 0

    def report(self) -> TerminationReport:
        """Of the last attempt that wrote one."""
        return TerminationReport.model_validate_json((self.folder / "termination").read_text())

    def made(self) -> Made:
        """What to compare."""
        adapter = hashlib.sha256((self.output / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
        lines = [json.loads(line) for line in self.history.read_text().splitlines()]
        return Made(adapter, json.dumps([_without_speeds(line) for line in lines]))


def _row(number: int) -> dict[str, Any]:
    """Rows of one length: one shape to compile."""
    question = {"role": "user", "content": f"which one is {number:03d}?"}
    answers = (f"it is {number:03d}", f"not {number:03d} at all")
    chosen, rejected = ([question, {"role": "assistant", "content": answer}] for answer in answers)
    return {"chosen": chosen, "rejected": rejected}


def _without_speeds(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in metrics.INEXACT}


def random_moments(seed: int, kills: int, steps: int) -> list[Moment]:
    """`kills` moments for each of the two signals, in a random order."""
    rng = random.Random(seed)
    numbers = [signal.SIGKILL, signal.SIGTERM] * kills
    rng.shuffle(numbers)
    return [_random_moment(rng, number, steps) for number in numbers]


def _random_moment(rng: random.Random, number: signal.Signals, steps: int) -> Moment:
    others = [state for state in _SPANS if state != TrainerState.TRAINING]
    state = TrainerState.TRAINING if rng.random() < _TRAINING_SHARE else rng.choice(others)
    lines = rng.randrange(1, steps) if state in _LOOP else 0
    return Moment(number, state, lines, rng.uniform(0, _SPANS[state]))


def chaos(folder: Path, moments: Sequence[Moment], *, kills_per_run: int, steps: int) -> Outcome:
    """Kill runs at all of these moments.

    Args:
        folder: Empty; for outputs, logs and caches.
        moments: One after another; each attempt waits for the next.
        kills_per_run: A run is killed so often, then left to end.
        steps: Of each run.

    Raises:
        BrokenRunError: a run did not end, or made something else than the undisturbed one.
    """
    began = time.monotonic()
    undisturbed = Run(folder / "undisturbed")
    undisturbed.configure(steps)
    undisturbed.finish(undisturbed.start("prepare"), "prepare")
    undisturbed.finish(undisturbed.start("train"), "train")
    expected = undisturbed.made()
    print(f"undisturbed: {steps} steps in {time.monotonic() - began:.0f} s, preparation included", flush=True)

    left = list(moments)
    done: list[Kill] = []
    resumed: list[int] = []
    attempts = 0
    while left:
        run = Run(folder / f"run-{len(resumed)}")
        run.configure(steps)
        run.prepared_as(undisturbed)
        attempts += _until_it_ends(run, len(resumed), undisturbed.lines(), left, kills_per_run, done)
        progress = run.report().progress
        resumed.append((progress and progress.resumed_from_step) or 0)
        if run.made() != expected:
            raise BrokenRunError(f"{run.folder} made something else than {undisturbed.folder}.")
    seconds = round(time.monotonic() - began, 1)
    return Outcome(steps, len(resumed), attempts, tuple(done), expected.adapter, tuple(resumed), seconds)


def _until_it_ends(run: Run, number: int, lines: int, left: list[Moment], kills_per_run: int, done: list[Kill]) -> int:
    """Start and kill attempts; takes from `left` what it used, adds to `done`. Returns the number of attempts.

    Args:
        run: New.
        number: Its own.
        lines: Of the history, in the end.
        left: The moments that are left.
        kills_per_run: At most.
        done: Every kill so far.
    """
    killed = attempt = 0
    while True:
        moment = left[0] if left and killed < kills_per_run else None
        if moment is not None and moment.state in _LOOP and run.lines() == lines:
            moment = None  # a run that has done all its steps has no such moment any more
        if moment is not None and moment.state == TrainerState.REFERENCE:
            shutil.rmtree(run.cache / "reference", ignore_errors=True)  # else there would be no such pass
        process = run.start("train", attempt)
        kill = None if moment is None else _kill(run, process, moment, number, attempt)
        if kill is not None:
            print(
                f"run {number}, attempt {attempt}: {kill.signal} after {kill.seconds:.2f} s, "
                f"{kill.state or 'before the first word'}, {kill.lines} lines of history: exit code {kill.exit_code}",
                flush=True,
            )
            done.append(kill)
            left.pop(0)
            killed += 1
        elif moment is not None:  # this attempt's part of the run did not hold the moment: it comes sooner
            left[0] = dataclasses.replace(moment, lines=moment.lines // 2, seconds=moment.seconds / 2)
        attempt += 1
        if process.poll() != ExitCode.DONE and kill is not None:
            continue
        run.finish(process, "train", attempt - 1)
        return attempt


def _kill(run: Run, process: subprocess.Popen[str], moment: Moment, number: int, attempt: int) -> Kill | None:
    """Send an attempt its signal; None when it ended before."""
    began = time.monotonic()
    log = run.folder / f"train-{attempt}.log"
    while process.poll() is None and not (moment.state in log.read_text() and run.lines() >= moment.lines):
        time.sleep(_POLL_SECONDS)
    at = time.monotonic() + moment.seconds
    while process.poll() is None and time.monotonic() < at:
        time.sleep(_POLL_SECONDS)
    if process.poll() is not None:
        return None
    state, lines, seconds = _state(log.read_text()), run.lines(), time.monotonic() - began
    process.send_signal(moment.number)
    code = process.wait(timeout=_ATTEMPT_SECONDS)
    if code not in _allowed(moment.number, state):
        raise BrokenRunError(
            f"{run.folder.name}, attempt {attempt}: {moment.number.name} gave exit code {code}:\n"
            f"{log.read_text()[-3000:]}"
        )
    message = run.report().message if code == ExitCode.PREEMPTED else ""
    return Kill(number, attempt, moment.number.name, state, round(seconds, 3), lines, code, message)


def _allowed(number: signal.Signals, state: str) -> set[int]:
    """Exit codes of an attempt that gets a signal while it is in a state."""
    codes = {int(-number)} if number is signal.SIGKILL else {int(ExitCode.PREEMPTED)}
    if not state:  # a SIGTERM does to a Python that is still starting what it does to any program
        codes.add(int(-number))
    if state in (TrainerState.SAVING, TrainerState.FINISHED):  # with all steps done, it may end in the time it has
        codes.add(int(ExitCode.DONE))
    return codes


def _state(log: str) -> str:
    """The last state that a log names."""
    states = [line.partition(" ")[2] for line in log.splitlines()]
    return next((state for state in reversed(states) if state in set(TrainerState)), "")


def main() -> None:
    """The long form; writes `build/reports/chaos-trainer.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--kills", type=int, default=20, help="with each of SIGKILL and SIGTERM")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    moments = random_moments(options.seed, options.kills, options.steps)
    with tempfile.TemporaryDirectory(prefix="chaos-trainer-") as folder:
        try:
            outcome = chaos(Path(folder), moments, kills_per_run=5, steps=options.steps)
        except BrokenRunError as error:
            sys.exit(f"chaos-trainer: BROKEN with seed {options.seed}: {error}")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps({"seed": options.seed} | dataclasses.asdict(outcome), indent=1) + "\n")
    print(f"chaos-trainer: {outcome}, seed {options.seed}")


if __name__ == "__main__":
    main()
