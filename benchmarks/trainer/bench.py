"""This trainer beside TRL with PEFT and beside upstream Levanter: the same machine, model and pairs, in one go.

Every contender is a process that loads, warms up, and then makes a step when it is told to: rounds interleave, and no
two ever compute at once. Results: tables in Markdown, and `build/reports/bench-trainer.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.trainer import agreement, pairs
from benchmarks.trainer.limit import ModelShape, PairTokens

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "build" / "reports" / "bench-trainer.json"
PYTHON = {name: ROOT / ".venv" / name / "bin" / "python" for name in ("trainer", "export", "bench-trl")}
OURS, TRL_FASTEST, TRL_DEFAULT, LEVANTER = "lora-dpo-trainer", "trl-fastest", "trl-default", "levanter"
STEPS = 6
"""Of a round, which is an epoch: batches of like length differ in what they cost, so that all of them must count."""


class BenchError(Exception):
    """The benchmark cannot go on; the message says which contender failed and where its output is."""


@dataclasses.dataclass
class Contender:
    """A running process, and what it has answered."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    facts: dict[str, Any]
    rounds: list[list[dict[str, Any]]] = dataclasses.field(default_factory=list)
    peak_rss_bytes: int = 0

    @classmethod
    def start(cls, name: str, command: Sequence[str], log: Path) -> Contender:
        """Start a process, and wait until it is warm."""
        print(f"{name}: loading and warming up", flush=True)
        with log.open("w") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "TRANSFORMERS_OFFLINE": "1"},
            )  # fmt: skip
        contender = cls(name, process, log, {})
        contender.facts = contender._answer()["ready"]
        return contender

    def round(self) -> None:
        """Make the steps of one round."""
        answers = []
        for _ in range(STEPS):
            assert self.process.stdin is not None
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
            answers.append(self._answer())
        self.rounds.append(answers)
        steps = ", ".join(f"{answer['seconds']:.2f} s ({answer['cpu_seconds']:.2f} s CPU)" for answer in answers)
        print(f"{self.name}: {steps}", flush=True)

    def stop(self) -> None:
        """Note the peak memory, and end the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        self.peak_rss_bytes = int(found[1]) * 1024 if found else 0
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=120)

    @property
    def step_seconds(self) -> float:
        """Median over the rounds of a step's mean."""
        return self._median("seconds")

    def epoch_seconds_per_pair(self, batch: int) -> float:
        """Seconds that a pair costs in one epoch, with its share of the reference pass."""
        return self.step_seconds / batch + float(self.facts.get("reference_seconds_per_pair", 0.0))

    def report(self, batch: int) -> dict[str, Any]:
        """What was measured."""
        return {
            "step_seconds": [[answer["seconds"] for answer in answers] for answers in self.rounds],
            "step_seconds_median": self.step_seconds,
            "step_cpu_seconds_median": self._median("cpu_seconds"),
            "losses": [self.facts["first_loss"], *(answer["loss"] for answers in self.rounds for answer in answers)],
            "pairs_per_second_step": batch / self.step_seconds,
            "pairs_per_second_epoch": 1 / self.epoch_seconds_per_pair(batch),
            "peak_rss_bytes": self.peak_rss_bytes,
            "compiles_while_timed": self.rounds[-1][-1].get("compiles"),
            **{name: value for name, value in self.facts.items() if name not in ("order", "reference_logprobs")},
        }

    def _median(self, of: str) -> float:
        return statistics.median(statistics.fmean(answer[of] for answer in answers) for answers in self.rounds)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            tail = "".join(self.log.read_text().splitlines(keepends=True)[-15:])
            raise BenchError(f"{self.name} ended with exit code {code}; the end of {self.log}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    model: Path
    batch: int
    rank: int
    rounds: int
    work: Path

    @property
    def called(self) -> str:
        """The model's name in the report."""
        return "random" if self.model.name == "tiny" else "SmolLM2-135M"

    @property
    def pairs(self) -> int:
        """Pairs in a data set."""
        return self.batch * STEPS

    def start(self, name: str, share: float, rows: Sequence[dict[str, Any]]) -> Contender:
        """Start a contender on these rows, which it goes through again and again."""
        work = self.work / f"{name}-{share}"
        work.mkdir()
        data = work / "pairs.jsonl"
        pairs.write_jsonl(rows, data)
        environment, module, extra = {
            OURS: ("trainer", "our_steps", []),
            TRL_FASTEST: ("bench-trl", "trl_steps", ["--setting", "fastest"]),
            TRL_DEFAULT: ("bench-trl", "trl_steps", ["--setting", "default"]),
            LEVANTER: ("trainer", "levanter_steps", ["--length", str(max(t.longest_side for t in tokens(rows)))]),
        }[name]
        command = [
            str(PYTHON[environment]), "-m", f"benchmarks.trainer.{module}", "--model", str(self.model),
            "--data", str(data), "--batch", str(self.batch), "--rank", str(self.rank), "--work", str(work), *extra,
        ]  # fmt: skip
        return Contender.start(name, command, REPORT.parent / f"bench-{name}-{share}.log")


def grouped_by_length(rows: Sequence[dict[str, Any]], batch: int) -> list[int]:
    """Indices of the rows in batches of like length, the longest first, as Hugging Face's trainer groups them."""
    by_length = sorted(range(len(rows)), key=lambda index: -tokens([rows[index]])[0].longest_side)
    return [index for start in range(0, len(rows), batch) for index in by_length[start : start + batch]]


def tokens(rows: Sequence[dict[str, Any]]) -> list[PairTokens]:
    """The rows' lengths: a word is a token, and an answer ends with one more."""

    def words(message: dict[str, str]) -> int:
        return len(message["content"].split())

    return [
        PairTokens(
            words(row["chosen"][0]) + pairs.PROMPT_TEMPLATE_TOKENS,
            words(row["chosen"][1]) + 1,
            words(row["rejected"][1]) + 1,
        )
        for row in rows
    ]


def main() -> None:
    """Run everything; exit code 1 when a contender failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a random model, to try the benchmark itself out")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.1, 0.6], help="further shares of prompts")
    parser.add_argument("--only", nargs="+", choices=[OURS, TRL_FASTEST, TRL_DEFAULT, LEVANTER])
    options = parser.parse_args()
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as work:
        setting = Setting(
            _model(Path(work), tiny=options.tiny), options.batch, options.rank, options.rounds, Path(work)
        )
        names = options.only or [OURS, TRL_FASTEST, TRL_DEFAULT, LEVANTER]
        try:
            report = measure(setting, names, options.shares)
        except BenchError as error:
            sys.exit(str(error))
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{_markdown(report)}\n\nreport: {REPORT.relative_to(ROOT)}")
    missing = [name for name in names if name not in report["contenders"]]
    if missing:
        sys.exit(f"not measured: {', '.join(missing)}; see above")
    if report["disagreements"]:
        sys.exit("the contenders did not do the same work:\n" + "\n".join(report["disagreements"]))


def measure(setting: Setting, names: Sequence[str], others: Sequence[float]) -> dict[str, Any]:
    """All contenders with prompt share 0.3, interleaved; then this trainer alone with other shares."""
    rows = pairs.preference_pairs(setting.pairs, prompt_share=0.3, seed=0)
    lengths, shape = tokens(rows), ModelShape.read(setting.model)
    rates = _matmul_rates(shape, lengths[: setting.batch])
    running = _run(setting, names, 0.3)
    report: dict[str, Any] = {
        "setting": {"model": setting.called, "batch": setting.batch, "rank": setting.rank, "prompt_share": 0.3,
                    "rounds": setting.rounds, "processors": os.cpu_count(), "pairs": len(rows),
                    "tokens_per_pair": statistics.fmean(t.encoded for t in lengths),
                    "longest_side": max(t.longest_side for t in lengths)},
        "matmul_flops_per_second": rates,
        "contenders": {one.name: one.report(setting.batch) for one in running.values()},
        "disagreements": _disagreements(setting, running),
    }  # fmt: skip
    if OURS in running:
        report |= _ratios(setting, running) | _limit(setting, running[OURS], shape, lengths, max(rates.values()))
        report["profile"] = _profile(setting, rows)
        report["other_prompt_shares"] = {
            str(share): _run(setting, [OURS], share)[OURS].report(setting.batch) for share in others
        }
    return report


def _profile(setting: Setting, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Where this trainer's processor time goes."""
    work = setting.work / "profile"
    work.mkdir()
    pairs.write_jsonl(rows, work / "pairs.jsonl")
    command = [
        str(PYTHON["trainer"]), "-m", "benchmarks.trainer.our_profile", "--model", str(setting.model),
        "--data", str(work / "pairs.jsonl"), "--batch", str(setting.batch), "--rank", str(setting.rank),
        "--work", str(work),
    ]  # fmt: skip
    found: dict[str, float] = json.loads(_output(command).splitlines()[-1])
    return found


def _run(setting: Setting, names: Sequence[str], share: float) -> dict[str, Contender]:
    """Start contenders, this trainer first: the others take the pairs in its order."""
    rows = pairs.preference_pairs(setting.pairs, prompt_share=share, seed=0)
    running: dict[str, Contender] = {}
    try:
        for name in sorted(names, key=lambda name: name != OURS):
            own = [rows[index] for index in grouped_by_length(rows, setting.batch)] if name == TRL_FASTEST else rows
            try:
                running[name] = setting.start(name, share, own)
            except BenchError as error:  # the others are still worth measuring
                if name == OURS:
                    raise
                print(error, file=sys.stderr, flush=True)
            else:
                rows = [rows[index] for index in running[name].facts.get("order", range(len(rows)))]
        for _ in range(setting.rounds):
            for contender in running.values():
                contender.round()
        for contender in running.values():
            contender.stop()
    finally:
        for contender in running.values():
            contender.process.kill()
    return running


def _disagreements(setting: Setting, running: dict[str, Contender]) -> list[str]:
    facts = {name: contender.facts for name, contender in running.items()}
    rows = pairs.preference_pairs(setting.pairs, prompt_share=0.3, seed=0)
    order = facts.get(OURS, {}).get("order", range(len(rows)))
    grouped = {TRL_FASTEST: grouped_by_length([rows[index] for index in order], setting.batch)}
    starts = {LEVANTER: agreement.LEVANTER_START}
    return agreement.disagreements(facts, OURS, starts=starts, grouped=grouped)


def _ratios(setting: Setting, running: dict[str, Contender]) -> dict[str, float]:
    """How many times as fast this trainer is, and its share of the others' memory."""
    ours, found = running[OURS], {}
    epoch = ours.epoch_seconds_per_pair(setting.batch)
    if fastest := running.get(TRL_FASTEST):
        found["ratio_trl_fastest_epoch"] = fastest.epoch_seconds_per_pair(setting.batch) / epoch
        found["ratio_trl_fastest_step_cached"] = fastest.step_seconds / ours.step_seconds
        found["ratio_trl_rss"] = ours.peak_rss_bytes / fastest.peak_rss_bytes
    if default := running.get(TRL_DEFAULT):
        found["ratio_trl_default_epoch"] = default.epoch_seconds_per_pair(setting.batch) / epoch
        found["ratio_trl_default_rss"] = ours.peak_rss_bytes / default.peak_rss_bytes
    if levanter := running.get(LEVANTER):
        found["ratio_levanter"] = levanter.epoch_seconds_per_pair(setting.batch) / epoch
    return found


def _limit(
    setting: Setting, ours: Contender, shape: ModelShape, lengths: Sequence[PairTokens], rate: float
) -> dict[str, float]:
    """This trainer's speed, as a share of that at which the machine could do nothing but products.

    `fraction_of_machine_limit` counts the work as published figures do: each token of either side, the vocabulary at
    each, the reference cached, nothing done twice, no padding. It may pass 1, for this trainer leaves out what sides
    share and the vocabulary of prompts; `…_necessary_work` leaves that out of the count as well, and says how well the
    processors are used.
    """
    speed = setting.batch / ours.step_seconds
    return {
        name: speed * shape.step_flops(lengths, setting.rank, whole=whole) / len(lengths) / rate
        for name, whole in (("fraction_of_machine_limit", True), ("fraction_of_machine_limit_necessary_work", False))
    }


def _matmul_rates(shape: ModelShape, batch: Sequence[PairTokens]) -> dict[str, float]:
    """FLOP/s of each library on the products of one batch."""
    products = shape.products(sum(t.encoded for t in batch), sum(t.chosen + t.rejected for t in batch))
    rates = {}
    for library, environment in (("torch", "bench-trl"), ("numpy", "trainer"), ("xla", "trainer")):
        command = [str(PYTHON[environment]), "-m", "benchmarks.trainer.matmul", "--library", library]
        out = _output([*command, "--shapes", json.dumps(products)])
        rates[library] = float(out.splitlines()[-1])
        print(f"matmul, {library}: {rates[library] / 1e9:.0f} GFLOP/s", flush=True)
    return rates


def _model(work: Path, *, tiny: bool) -> Path:
    quickstart = ROOT / "examples" / "quickstart" / "smollm2.py"
    folder = Path(json.loads(_output([str(PYTHON["export"]), str(quickstart)]))["folder"])
    if not tiny:
        return folder
    _output([str(PYTHON["bench-trl"]), "-m", "benchmarks.trainer.tiny_model", str(folder), str(work / "tiny")])
    return work / "tiny"


def _output(command: Sequence[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` failed with exit code {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def _markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines = [
        "| | s a step | CPU s a step | pairs/s, step | pairs/s, epoch | peak RSS, GB |",
        "|---|---|---|---|---|---|",
    ]
    shares = {f"… prompt share {share}": one for share, one in report.get("other_prompt_shares", {}).items()}
    for name, one in (report["contenders"] | shares).items():
        lines.append(
            f"| {name} | {one['step_seconds_median']:.2f} | {one['step_cpu_seconds_median']:.2f} "
            f"| {one['pairs_per_second_step']:.3f} | {one['pairs_per_second_epoch']:.3f} "
            f"| {one['peak_rss_bytes'] / 1e9:.2f} |"
        )
    ratios = {name: value for name, value in report.items() if isinstance(value, float)}
    return "\n".join([*lines, "", "| | |", "|---|---|", *(f"| `{n}` | {v:.2f} |" for n, v in ratios.items())])


if __name__ == "__main__":
    main()
