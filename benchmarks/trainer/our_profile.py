"""Where the processor time of a train step goes, as JAX's profiler sees it; for where a figure of the benchmark misses.

Takes the options of `our_steps`, and prints one JSON object of shares. Started by `bench.py`.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from benchmarks.trainer import our_steps
from lora_dpo_trainer import reference, sources

STEPS = 3

_PRODUCTS = ("ynn_fusion", "dot", "SlinkyThreadPool")
_MOVING = {
    "bitcast", "broadcast", "concatenate", "copy", "dynamic-slice", "dynamic-update-slice", "fusion", "gather", "pad",
    "reshape", "slice", "transpose", "wrapped",
}  # fmt: skip


def main() -> None:
    """Prepare, warm up, and profile a few steps."""
    options = our_steps.read_options()
    machine = our_steps.prepared_engine(options)
    known = reference.compute(machine.pairs.train, machine.reference_scorer())
    machine = dataclasses.replace(machine, reference_logprobs={sources.TRAIN: known})
    state = machine.fresh_state()
    for number in range(STEPS):
        state, _ = machine.train(state, machine.batch(number))
    with jax.profiler.trace(str(options.work / "profile")):
        for number in range(STEPS):
            state, _ = machine.train(state, machine.batch(number))
    written = next((options.work / "profile").rglob("*.trace.json.gz"))
    json.dump(shares(json.loads(gzip.decompress(written.read_bytes()))["traceEvents"]), sys.stdout)


def shares(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Parts of the time in which XLA's threads compute: products, other arithmetic, and copies that compute nothing.

    Args:
        events: Of Chrome's trace format. One within another on the same thread is taken off that one's time.
    """
    threads: dict[Any, list[Mapping[str, Any]]] = collections.defaultdict(list)
    workers = set()
    for event in events:
        thread = event.get("pid"), event.get("tid")
        if event.get("name") == "thread_name" and "XLAEigen" in event["args"]["name"]:
            workers.add(thread)
        elif event.get("ph") == "X":
            threads[thread].append(event)
    seconds: collections.Counter[str] = collections.Counter()
    for worker in workers:
        open_events: list[Mapping[str, Any]] = []
        for event in sorted(threads[worker], key=lambda one: (one["ts"], -one["dur"])):
            while open_events and open_events[-1]["ts"] + open_events[-1]["dur"] <= event["ts"]:
                open_events.pop()
            seconds[_kind(event["name"])] += event["dur"]
            if open_events:
                seconds[_kind(open_events[-1]["name"])] -= event["dur"]
            open_events.append(event)
    total = seconds.total()
    return {kind: value / total for kind, value in seconds.most_common()}


def _kind(name: str) -> str:
    """Of an operation, by its name: `copy_bitcast_fusion.3` is made of what it is called after."""
    stem = name.split(".")[0]
    if stem.startswith(_PRODUCTS):
        return "products"
    if stem.startswith(("ThunkExecutor", "while", "call")):
        return "waiting and control"
    return "copies" if set(stem.split("_")) <= _MOVING else "other arithmetic"


if __name__ == "__main__":
    main()
