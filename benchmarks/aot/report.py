"""This trainer's step and upstream Levanter's, compiled ahead of time for TPU slices, side by side.

No TPU takes part: operations are counted in what was traced, memory is what the compiler says. There are no times.
Each program is compiled in a process of its own, two at once. Results: a table, and `build/reports/aot.json`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.aot.workload import LENGTH, PAIRS, RANK, SLICES, Llama

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "build" / "reports" / "aot.json"
SMALLEST = "v5p-8 smallest"
LEVANTER = "levanter v5p-8"


def main() -> None:
    """Compile everything; exit code 1 when something could not be compiled."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=Llama.layers, help="fewer, to try the benchmark itself out")
    parser.add_argument("--parallel", type=int, default=min(2, os.cpu_count() or 1), help="programs at once")
    options = parser.parse_args()
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    runs = {
        LEVANTER: ["levanter_step", "--slice", "v5p-8"],
        SMALLEST: ["our_step", "--slice", "v5p-8", "--keep", "full", "--pairs-per-chip", "2"],
        **{name: ["our_step", "--slice", name] for name in SLICES},
    }
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
        waiting = {name: pool.submit(_run, name, command, options.layers) for name, command in runs.items()}
        found = {name: future.result() for name, future in waiting.items()}
    report = {
        "setting": {"model": "Llama-3.1-8B", "layers": options.layers, "rank": RANK, "pairs": PAIRS, "length": LENGTH},
        "seconds": time.monotonic() - began,
        "programs": found,
    }
    failed = [name for name, values in found.items() if "failed" in values]
    if not failed:
        report |= ratios(found)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    _print(report)
    if failed:
        sys.exit("not compiled: " + "; ".join(f"{name}: {found[name]['failed']}" for name in failed))


def ratios(found: dict[str, Any]) -> dict[str, Any]:
    """This trainer against upstream, per pair-token: a token of either side, shared or not."""
    theirs, ours = found[LEVANTER], found["v5p-8"]
    per_token = theirs["flops_per_pair_token"]
    cached, reference = ours["flops_per_pair_token"], ours["flops_per_pair_token_reference"]
    return {
        "flops_ratio_levanter": cached / per_token,
        "flops_ratio_levanter_one_epoch": (cached + reference) / per_token,
        "flops_ratio_levanter_shared_prompt": ours["flops_per_pair_token_shared_prompt"] / per_token,
        "hbm_ratio_levanter_smallest": _larger(found[SMALLEST]) / _larger(theirs),
        "shapes_that_fit": [name for name in SLICES if found[name]["fits"]],
        "splash_in_every_program": all(found[name].get("splash", False) for name in (SMALLEST, *SLICES)),
    }


def _larger(readings: dict[str, Any]) -> float:
    return max(float(readings["sum_gib"]), float(readings["peak_gib"]))


def _run(name: str, command: list[str], layers: int) -> dict[str, Any]:
    """One program, compiled in a process of its own; `failed` says why it was not."""
    module, *arguments = command
    log = REPORT.parent / f"aot-{name.replace(' ', '-')}.log"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "TRANSFORMERS_OFFLINE": "1",
        "LEVANTER_PALLAS_CE_AUTOTUNE_ON_MISS": "0",
    }
    print(f"{name}: compiling", flush=True)
    with log.open("w") as errors:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.aot.{module}", *arguments, "--layers", str(layers)],
            stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment, check=False,
        )  # fmt: skip
    if done.returncode:
        return {"failed": f"exit code {done.returncode}, see {log}"}
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {values.get('compile_seconds', 0):.0f} s", flush=True)
    return values


def _print(report: dict[str, Any]) -> None:
    columns = ("program", "kept", "pairs/chip", "base", "FLOPs/chip", "per pair-token", "sum GiB", "peak GiB", "usable")
    print(("{:<16}{:<17}{:>10}  {:<9}{:>10}{:>15}{:>9}{:>10}{:>8}").format(*columns))
    for name, values in report["programs"].items():
        if "failed" in values:
            print(f"{name:<16}{values['failed']}")
            continue
        base = "" if "base_split" not in values else "split" if values["base_split"] else "whole"
        print(
            f"{name:<16}{values.get('keep', 'default'):<17}{values.get('pairs_per_chip', ''):>10}  {base:<9}"
            f"{values['flops_per_chip']:>10.3e}{values['flops_per_pair_token']:>15.3e}"
            + (
                f"  refused: {values['refused']}"
                if "refused" in values
                else f"{values['sum_gib']:>9.1f}{values['peak_gib']:>10.1f}{values['usable_gib']:>8.1f}"
            )
        )
    for key in ("flops_ratio_levanter", "flops_ratio_levanter_one_epoch", "flops_ratio_levanter_shared_prompt",
                "hbm_ratio_levanter_smallest", "shapes_that_fit", "splash_in_every_program"):  # fmt: skip
        if key in report:
            value = report[key]
            print(f"{key}: {value:.3f}" if isinstance(value, float) else f"{key}: {value}")


if __name__ == "__main__":
    main()
