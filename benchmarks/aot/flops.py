"""Floating-point operations of a traced program: its matrix products times the lengths of the loops around them.

The compiler's own count takes each loop's body once, and leaves kernels out. Here a product counts wherever it is
run, after everything whose result nobody uses was removed. Splash attention counts as causal: half of the scores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from jax._src.interpreters import partial_eval

_FORWARD, _DQ, _DKV, _FUSED = 2, 3, 4, 5
"""Products of a score's size in each kernel; the fused backward pass makes dq, dk and dv."""


@dataclasses.dataclass(frozen=True)
class Flops:
    """What a program computes, over all devices.

    Attributes:
        products: In plain matrix products.
        attention: In splash kernels.
        once: Plain products with every loop's body counted once, as the compiler counts.
        kernels: Calls of splash kernels.
    """

    products: float = 0.0
    attention: float = 0.0
    once: float = 0.0
    kernels: int = 0

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def count(closed: Any) -> Flops:
    """Operations of a closed jaxpr."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(jaxpr, 1, 1)


def _count(jaxpr: Any, times: int, devices: int) -> Flops:
    return sum((_of(equation, times, devices) for equation in jaxpr.eqns), Flops())


def _of(equation: Any, times: int, devices: int) -> Flops:
    """One equation, that is run `times` times on each of `devices` parts."""
    match equation.primitive.name:
        case "dot_general":
            work = _product(equation) * devices
            return Flops(products=work * times, once=work)
        case "pallas_call":
            return Flops(attention=_kernel(equation) * times * devices, kernels=times)
        case "scan":
            times *= equation.params["length"]
        case "while":
            times *= _trips(equation)
        case "shard_map":
            devices *= math.prod(equation.params["mesh"].shape.values())
        case "cond":
            branches = [_count(part, times, devices) for part in inner(equation)]
            return max(branches, key=lambda flops: flops.total)
        case "custom_vjp_call" | "custom_jvp_call":
            return _count(next(iter(inner(equation))), times, devices)
    return sum((_count(part, times, devices) for part in inner(equation)), Flops())


def inner(equation: Any) -> Iterator[Any]:
    """The jaxprs in an equation's parameters."""
    for value in equation.params.values():
        candidates: Iterable[Any] = value if isinstance(value, tuple | list) else (value,)
        for candidate in candidates:
            jaxpr = getattr(candidate, "jaxpr", candidate)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _kernel(equation: Any) -> float:
    """A splash kernel's, from the shape of its queries, [..., heads, length, head size], the first array so large."""
    name = str(equation.params.get("name") or equation.params.get("name_and_src_info"))
    shapes = [variable.aval.shape for variable in equation.invars]
    *lead, length, size = next(shape for shape in shapes if len(shape) >= 3 and shape[-1] in (128, 256))
    if "dkv" in name:
        # The fused kernel also returns dq, one part for each block of keys: the only array with one axis more.
        fused = any(len(variable.aval.shape) > len(lead) + 2 for variable in equation.outvars)
        products = _FUSED if fused else _DKV
    elif "dq" in name:
        products = _DQ
    elif "fwd" in name:
        products = _FORWARD
    else:
        raise ValueError(f"the work of the kernel {name} is not known")
    return 2 * math.prod(lead) * length * length * size / 2 * products


def _trips(equation: Any) -> int:
    """How often a while loop runs, where it counts up to a constant."""
    for inner in equation.params["cond_jaxpr"].jaxpr.eqns:
        if inner.primitive.name == "lt":
            for variable in inner.invars:
                if hasattr(variable, "val"):
                    return int(variable.val)
    raise ValueError("a loop's length is not known before it runs")
