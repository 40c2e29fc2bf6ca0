from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lora_dpo_api.protocol import ExitCode, Phase, TerminationReport
from lora_dpo_trainer import errors, exits


def every_error() -> list[type[errors.TrainerError]]:
    found, left = [], [errors.TrainerError]
    while left:
        kind = left.pop()
        found.append(kind)
        left += kind.__subclasses__()
    return found


def run(body: str, tmp_path: Path) -> tuple[int, TerminationReport, str]:
    """Run a phase with this body in a process of its own."""
    code = (
        "from lora_dpo_api.protocol import Phase, TerminationReport\n"
        "from lora_dpo_trainer import errors, exits\n"
        f"def body():\n    {body}\n"
        "exits.run_phase(Phase.TRAIN, body)\n"
    )
    log = tmp_path / "termination"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"LORADPO_TERMINATION_LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, TerminationReport.model_validate_json(log.read_text()), done.stderr


def test_a_success_leaves_with_its_report(tmp_path: Path) -> None:
    body = "return TerminationReport(phase=Phase.TRAIN, exit_code=0, reason='Trained', message='done')"
    code, report, _ = run(body, tmp_path)
    assert (code, report.reason) == (0, "Trained")


def test_an_expected_error_has_its_code_and_no_traceback(tmp_path: Path) -> None:
    code, report, log = run("raise errors.PairTooLong('row 3 is too long.')", tmp_path)
    assert code == report.exit_code == ExitCode.DATA
    assert (report.reason, report.message) == ("PairTooLong", "row 3 is too long.")
    assert report.hint is not None
    assert "Traceback" not in log


def test_an_unexpected_error_is_our_bug_with_a_traceback(tmp_path: Path) -> None:
    code, report, log = run("raise ValueError('odd')", tmp_path)
    assert code == report.exit_code == ExitCode.INTERNAL
    assert report.message == "ValueError: odd"
    assert "Traceback" in log


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_becomes_a_report_that_fits(kind: type[errors.TrainerError]) -> None:
    report = exits.report_of(kind("x" * 5000), Phase.PREPARE)
    assert len(report.to_termination_message().encode()) <= 4096
    assert report.exit_code == kind.exit_code
    assert report.reason == kind.__name__


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    for kind in every_error():
        line = next(line for line in (errors.__doc__ or "").splitlines() if kind.__name__ in line.split())
        if kind is not errors.TrainerError:
            assert str(int(kind.exit_code)) in line.split()
