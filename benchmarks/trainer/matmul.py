"""The rate at which a library multiplies float32 matrices of the model's shapes: what no trainer can exceed."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

REPEATS = 8


def main() -> None:
    """Print FLOP/s, the best of a few repeats of each product."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", choices=["numpy", "torch", "xla"], required=True)
    parser.add_argument("--shapes", required=True, help="JSON list of [rows, inner, columns, count]")
    options = parser.parse_args()
    prepare = {"numpy": _numpy, "torch": _torch, "xla": _xla}[options.library]
    print(json.dumps(rate(prepare, json.loads(options.shapes))))


def rate(prepare: Callable[[np.ndarray, np.ndarray], Callable[[], object]], shapes: Sequence[Sequence[int]]) -> float:
    """FLOP/s over all products together, each as often as the model has it."""
    flops = seconds = 0.0
    generator = np.random.default_rng(0)
    for rows, inner, columns, count in shapes:
        left, right = (generator.standard_normal(size, np.float32) for size in ((rows, inner), (inner, columns)))
        product = prepare(left, right)
        product()
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            product()
            times.append(time.perf_counter() - started)
        flops += 2.0 * rows * inner * columns * count
        seconds += min(times) * count
    return flops / seconds


def _numpy(left: np.ndarray, right: np.ndarray) -> Callable[[], object]:
    return lambda: left @ right


def _torch(left: np.ndarray, right: np.ndarray) -> Callable[[], object]:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    return lambda: a @ b


def _xla(left: np.ndarray, right: np.ndarray) -> Callable[[], object]:
    import jax

    a, b = jax.device_put(left), jax.device_put(right)
    product = jax.jit(lambda x, y: x @ y)
    return lambda: product(a, b).block_until_ready()


if __name__ == "__main__":
    main()
