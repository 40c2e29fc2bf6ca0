"""How much memory and time the prepare phase needs for many rows: `prepare_rows.py BASE [--rows 1000000]`.

Rows of different lengths are written to one jsonl file; the phase runs over them in a process of its own, and what that
process took is printed as one JSON line. Run it with the Python of the trainer's virtual environment.

The peak of resident memory holds pages of the prepared files, which are mapped and which the kernel takes back when it
needs them; `peak_anonymous_mib` is what the process really needs, looked at twenty times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

WORDS = ("model", "answer", "river", "seven", "quiet", "because", "number", "green", "often", "stone")


_LOOK_SECONDS = 0.05


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    """A preference_chat row a line, each prompt another one."""
    draw = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    with path.open("w") as file:
        for number in range(rows):
            question = {"role": "user", "content": f"{number} {words(12)}"}
            sides = {
                side: [question, {"role": "assistant", "content": f"{words(10)} {mark}"}]
                for side, mark in (("chosen", "yes"), ("rejected", "no"))
            }
            file.write(json.dumps(sides) + "\n")


def measure(base: Path, rows: int, folder: Path) -> dict[str, float]:
    """Write rows, prepare them, and tell what that took."""
    data = folder / f"rows-{rows}.jsonl"
    write_rows(data, rows)
    source = {"type": "url", "train_urls": [str(data)]}
    config = {
        "data": {"components": {"rows": {"source": source, "format": {"slice_strategy": "drop"}}}},
        "initialize_from_hf": str(base),
        "train_seq_len": 256,
        "validation_split_fraction": 0.05,
        "trainer": {"train_batch_size": 64},
        "lora": {"r": 8},
        "output": {"path": str(folder / f"out-{rows}")},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    words = ["-m", "lora_dpo_trainer", "--config_path", str(folder / "config.yaml"), "--phase", "prepare"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "LORADPO_TERMINATION_LOG": str(folder / "termination")}
    began = time.monotonic()
    log = folder / f"prepare-{rows}.log"
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, *words], env=environment, stdout=output, stderr=output)
    anonymous, pid = 0, 0
    while pid == 0:
        anonymous = max(anonymous, _anonymous_kib(process.pid))
        time.sleep(_LOOK_SECONDS)
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(log.read_text())
    found = json.loads((folder / "termination").read_text())["prepared"]
    data.unlink()
    return {
        "rows": rows,
        "train_pairs": found["trainPairs"],
        "validation_pairs": found["validationPairs"],
        "tokens": found["tokens"],
        "peak_rss_mib": round(used.ru_maxrss / 1024, 1),
        "peak_anonymous_mib": round(anonymous / 1024, 1),
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    }


def _anonymous_kib(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", type=Path, help="a checkpoint with tokenizer and chat template")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    options = parser.parse_args(arguments)
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(measure(options.base, rows, Path(scratch))), flush=True)


if __name__ == "__main__":
    main()
