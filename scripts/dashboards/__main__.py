"""Writes the dashboards into the chart; with `--check`, 1 where one of them is not as it must be."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.dashboards import board, controller, fleet, training

FOLDER = Path(__file__).parents[2] / "helm" / "lora-dpo-operator" / "files" / "dashboards"
GOOGLES = FOLDER.with_name("dashboards-google")
"""The same for Google Cloud Managed Service for Prometheus."""
BOARDS = (training.BOARD, fleet.BOARD, controller.BOARD)


def generated() -> dict[Path, str]:
    """Every dashboard's file and what it must hold."""
    texts = {f"{found.uid}.json": board.to_json(found) for found in BOARDS}
    ordinary = {FOLDER / name: text for name, text in texts.items()}
    return ordinary | {GOOGLES / name: board.for_google(text) for name, text in texts.items()}


def main(argv: list[str]) -> int:
    """Write or check."""
    files = generated()
    stale = [file for file, text in files.items() if not file.is_file() or file.read_text() != text]
    stale += [file for folder in (FOLDER, GOOGLES) for file in folder.glob("*") if file not in files]
    for file in stale:
        if argv == ["--check"]:
            print(f"{file.name} is out of date; run python -m scripts.dashboards", file=sys.stderr)
        elif file in files:
            file.parent.mkdir(exist_ok=True)
            file.write_text(files[file])
        else:
            file.unlink()
    return 1 if stale and argv == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
