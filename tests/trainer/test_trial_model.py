"""The model of `helm test` is what its script writes."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "trial_model.py"


def test_the_model_in_the_chart_is_the_generated_one() -> None:
    answer = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
