"""Runs the test suites and prints one line of counts for each: `suites.py all|fast|lint`.

Standard library only, since it runs before anything is installed. The work goes in two lanes side by side, because on
a machine with empty caches the cluster's programs take about as long to build as the other tests take to run: one lane
prepares the cluster (tools, images), the other makes the virtual environments and runs what needs no cluster. The
cluster's own tests come last and alone, so that nothing takes the processor from them.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "test-logs"
COUNTS = re.compile(r"(\d+) (passed|failed|error|errors|skipped|xfailed|xpassed|deselected)\b")
OPERATOR = ".venv/operator/bin"
TRAINER = ".venv/trainer/bin"
EXPORT = ".venv/export/bin"


@dataclasses.dataclass(frozen=True)
class Step:
    """One command with a name, for example a pytest suite."""

    name: str
    command: tuple[str, ...]
    counts: bool = False
    env: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass
class Result:
    """How a step ended."""

    step: Step
    code: int
    seconds: float
    output: str

    @property
    def summary(self) -> str:
        """`N passed, N failed` for a suite, else `ok` or the exit code."""
        if not self.step.counts:
            return "ok" if self.code == 0 else f"exit code {self.code}"
        found: dict[str, int] = {}
        lines = [line for line in self.output.splitlines() if COUNTS.search(line)]
        for number, what in COUNTS.findall(lines[-1] if lines else ""):
            found[what] = found.get(what, 0) + int(number)
        failed = found.get("failed", 0) + found.get("error", 0) + found.get("errors", 0)
        text = f"{found.get('passed', 0)} passed, {failed} failed"
        return text + (f", {found['skipped']} skipped" if "skipped" in found else "")


def pytest(name: str, python: str, folder: str, *options: str) -> Step:
    """A pytest suite of one folder, in the virtual environment that has what it needs."""
    return Step(
        name=name,
        command=(f"{python}/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", folder, *options),
        counts=True,
        env=(("JAX_PLATFORMS", "cpu"),),
    )


SETUP_OPERATOR = Step("venv-operator", ("scripts/venv", "operator", "requirements/dev-operator.txt"))
SETUP_OTHERS = (
    Step("venv-trainer", ("scripts/venv", "trainer", "requirements/dev-trainer.txt")),
    Step("venv-export", ("scripts/venv", "export", "requirements/export.txt")),
)
LOCAL = ("-p", "ldj", "-p", "lora_dpo_localcluster")
LINT = (
    Step("ruff", (f"{OPERATOR}/ruff", "check", ".")),
    Step("format", (f"{OPERATOR}/ruff", "format", "--check", "--quiet", ".")),
    Step("types", (f"{OPERATOR}/mypy", "-p", "lora_dpo_api", "-p", "lora_dpo_operator", *LOCAL)),
    Step("types-trainer", (f"{TRAINER}/mypy", "-p", "lora_dpo_trainer")),
    Step("imports", (f"{OPERATOR}/lint-imports",)),
)
FAST = ("-m", "not slow and not cluster")
UNIT = (
    ("api", OPERATOR, "tests/api"),
    ("operator", OPERATOR, "tests/operator"),
    ("cli", OPERATOR, "tests/cli"),
    ("localcluster", OPERATOR, "tests/localcluster"),
    ("quickstart", OPERATOR, "tests/quickstart"),
    ("trainer", TRAINER, "tests/trainer"),
    ("export", EXPORT, "tests/export"),
)
CLUSTER_TOOLS = Step("cluster-tools", (f"{OPERATOR}/ldj", "cluster", "tools", "--kueue"))
CLUSTER_IMAGES = Step("cluster-images", (f"{OPERATOR}/ldj", "cluster", "images"))


class Runner:
    """Runs steps, keeps their logs, and remembers the results in order."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self._print = threading.Lock()
        LOGS.mkdir(parents=True, exist_ok=True)

    def run(self, step: Step) -> bool:
        """Run one step to its end; its output goes to a log, and to the screen when it fails."""
        started = time.monotonic()
        self._say(f"… {step.name}")
        log = LOGS / f"{step.name}.log"
        with log.open("w") as sink:
            code = subprocess.run(
                step.command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **dict(step.env)}
            ).returncode
        result = Result(step, code, time.monotonic() - started, log.read_text(errors="replace"))
        self.results.append(result)
        if code != 0:
            self._say(result.output[-20_000:])
        self._say(f"{'✔' if code == 0 else '✘'} {step.name}: {result.summary} ({result.seconds:.0f} s)")
        return code == 0

    def run_all(self, steps: tuple[Step, ...]) -> bool:
        """Run every step, also after a failure: one run shows everything that is wrong."""
        return all([self.run(step) for step in steps])

    def _say(self, text: str) -> None:
        with self._print:
            print(text, flush=True)


def suites(*options: str) -> tuple[Step, ...]:
    """The suites that need no cluster and exist in this checkout."""
    return tuple(pytest(name, python, folder, *options) for name, python, folder in UNIT if (ROOT / folder).is_dir())


def test_all(runner: Runner) -> None:
    """Every test: units beside the building of the cluster's programs, then the cluster tests alone."""
    if not runner.run(SETUP_OPERATOR):
        return
    ready = threading.Event()

    def prepare_cluster() -> None:
        if runner.run(CLUSTER_TOOLS) and runner.run(CLUSTER_IMAGES):
            ready.set()

    lane = threading.Thread(target=prepare_cluster, name="cluster lane")
    lane.start()
    runner.run_all(SETUP_OTHERS)
    runner.run_all(LINT)
    runner.run_all(suites())
    lane.join()
    if ready.is_set():
        runner.run(pytest("storage", TRAINER, "tests/storage"))
        runner.run(pytest("helm", OPERATOR, "tests/helm"))
        runner.run(pytest("cluster", OPERATOR, "tests/cluster", "--durations=15"))


def test_fast(runner: Runner) -> None:
    """What needs no cluster, without the slow tests."""
    if runner.run_all((SETUP_OPERATOR, *SETUP_OTHERS)):
        runner.run_all(suites(*FAST))


def lint(runner: Runner) -> None:
    """Style, types and import rules."""
    if runner.run(SETUP_OPERATOR):
        runner.run_all(LINT)


def main(argv: list[str]) -> int:
    """Run what was asked for; 0 when everything passed."""
    modes = {"all": test_all, "fast": test_fast, "lint": lint}
    if len(argv) != 1 or argv[0] not in modes:
        print(f"usage: suites.py {'|'.join(modes)}", file=sys.stderr)
        return 2
    started = time.monotonic()
    runner = Runner()
    modes[argv[0]](runner)
    counted = [result for result in runner.results if result.step.counts]
    print("\n" + "\n".join(f"{result.step.name}: {result.summary}" for result in counted))
    failures = [result.step.name for result in runner.results if result.code != 0]
    minutes = (time.monotonic() - started) / 60
    verdict = f"FAILED: {', '.join(failures)}" if failures else "all passed"
    print(f"{verdict} in {minutes:.1f} min (logs in build/test-logs)")
    complete = argv[0] != "all" or any(result.step.name == "cluster" for result in runner.results)
    return 1 if failures or not complete else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
