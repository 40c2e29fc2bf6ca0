"""The adapter: low-rank factors beside frozen linear layers, in a pytree of their own.

The policy computes `W x + scale * B (A (dropout x))` and never makes the merged weights; the reference is the same
base without adapter. Exactly one factor starts at zero, so that both are equal at step 0. The layers of a stack share
one pair of arrays; where patterns give them different ranks, the spare rows of A and columns of B stay exactly zero
(their gradients are zero).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import haliax as hax
import haliax.nn as hnn
import jax
import jax.numpy as jnp
from haliax import Axis, NamedArray

from lora_dpo_api.config_file import AInit, LoraConfig
from lora_dpo_trainer import errors, frozen, linears, low_rank
from lora_dpo_trainer.linears import HEAD, LinearSpec

RANK = "lora_rank"


class LoraWeights(NamedTuple):
    """The factors of one linear layer or stack.

    Attributes:
        A: {layers…, lora_rank, in…}.
        B: {layers…, out…, lora_rank}.
    """

    A: NamedArray
    B: NamedArray


type Adapter = dict[str, LoraWeights]
"""`LinearSpec.path` → factors."""


@dataclasses.dataclass(frozen=True)
class LoraTarget:
    """A linear layer or stack that is adapted.

    Attributes:
        linear: Where it is.
        ranks: One a layer; 0 leaves a layer as it is.
        scales: One a layer: alpha/r, or alpha/sqrt(r) with rsLoRA.
    """

    linear: LinearSpec
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def rank_axis(self) -> Axis:
        """The axis between A and B, as long as the highest rank."""
        return Axis(RANK, max(self.ranks))

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same rank and scale."""
        return len(set(self.ranks)) == 1 and len(set(self.scales)) == 1


@dataclasses.dataclass(frozen=True)
class LoraPlan:
    """What is adapted, resolved against a model."""

    targets: tuple[LoraTarget, ...]
    dropout: float = 0.0

    @property
    def head(self) -> LoraTarget | None:
        """The output projection's, if it is adapted."""
        return next((target for target in self.targets if target.linear.path == HEAD), None)


def resolve(specs: tuple[LinearSpec, ...], config: LoraConfig) -> LoraPlan:
    """Find out which layers are adapted, with which rank and scale.

    Names are Hugging Face's. A list holds the last part of a name, or several; a string is a regular expression over
    the whole name (PEFT's meaning of both). Keys of `rank_pattern` and `alpha_pattern` are regular expressions over
    the end of a name.

    Raises:
        ConfigError: a name fits no linear layer, nothing is left to adapt, or a rank exceeds a dimension.
    """
    names = [name for spec in specs for name in spec.names]
    _check_known(config, names)
    targets = []
    for spec in specs:
        ranks = tuple(_rank(name, config) if _wanted(name, config) else 0 for name in spec.names)
        if any(ranks):
            _check_rank(spec, max(ranks))
            alphas = [_match(config.alpha_pattern, name, config.resolved_alpha) for name in spec.names]
            pairs = zip(alphas, ranks, strict=True)
            scales = tuple(a / (math.sqrt(r) if config.rslora else r) if r else 0.0 for a, r in pairs)
            targets.append(LoraTarget(spec, ranks, scales))
    if not targets:
        raise errors.ConfigError(
            "lora.target_modules and lora.exclude_modules leave no layer to adapt.",
            hint=f"The linear layers of this model: {', '.join(_leaves(names))}.",
        )
    return LoraPlan(tuple(targets), config.dropout)


def init(plan: LoraPlan, config: LoraConfig, key: jax.Array) -> Adapter:
    """Start an adapter, float32: one factor random, the other zero.

    A random A is uniform within ±1/sqrt(inputs), as PEFT draws it; a random B within ±1/sqrt(rank). The same seed
    gives the same adapter on any number of devices.
    """
    adapter: Adapter = {}
    for index, target in enumerate(plan.targets):
        a_axes, b_axes = _shapes(target)
        draw = jax.random.fold_in(key, index)
        if config.a_init_mode is AInit.ZERO:
            bound = 1 / math.sqrt(target.rank_axis.size)
            weights = LoraWeights(hax.zeros(a_axes), hax.random.uniform(draw, b_axes, minval=-bound, maxval=bound))
        else:
            bound = 1 / math.sqrt(hax.axis_size(target.linear.In))
            weights = LoraWeights(hax.random.uniform(draw, a_axes, minval=-bound, maxval=bound), hax.zeros(b_axes))
        adapter[target.linear.path] = trim(target, weights)
    return adapter


def trim(target: LoraTarget, weights: LoraWeights) -> LoraWeights:
    """Zero what lies beyond the rank of each layer."""
    if len(set(target.ranks)) == 1:
        return weights
    assert target.linear.Layers is not None, "one layer has one rank"
    ranks = hax.named(jnp.asarray(target.ranks), target.linear.Layers)
    inside = ranks.broadcast_axis(target.rank_axis) > hax.arange(target.rank_axis)
    return LoraWeights(*(hax.where(inside, x, 0.0).rearrange(x.axes) for x in weights))


def assert_identity(adapter: Adapter) -> None:
    """Raise `BrokenIdentity` unless every layer has exactly one factor at zero."""
    for path, weights in adapter.items():
        zero_a, zero_b = (not bool(jnp.any(factor.array != 0)) for factor in weights)
        if zero_a == zero_b:
            state = "both are zero: nothing would be learned" if zero_a else "none is: policy and reference differ"
            raise errors.BrokenIdentity(f"Exactly one LoRA factor of {path} must start at zero, but {state}.")


def parameter_count(plan: LoraPlan) -> int:
    """Trainable parameters, without the spare ones of lower ranks."""
    return sum(
        rank * (hax.axis_size(target.linear.In) + hax.axis_size(target.linear.Out))
        for target in plan.targets
        for rank in target.ranks
    )


def attach(module: Any, adapter: Adapter, plan: LoraPlan) -> Any:
    """A policy: the model with its linear layers wrapped; the output projection is left to `head_low_rank`."""
    targets = {target.linear.path: target for target in plan.targets}

    def change(path: str, linear: hnn.Linear, Layers: Axis | None) -> Any:
        if path not in targets or path == HEAD:
            return linear
        target, weights = targets[path], adapter[path]
        if target.uniform or Layers is None:
            return LoraLinear(linear, weights.A, weights.B, None, target.scales[0], plan.dropout)
        scales = hax.named(jnp.asarray(target.scales, jnp.float32), Layers)
        return LoraLinear(linear, weights.A, weights.B, scales, 1.0, plan.dropout)

    return linears.replace(module, change)


def head_low_rank(
    hidden: jax.Array, adapter: Adapter, plan: LoraPlan, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
    """`scale * A(hidden)` [groups, slots, rank] and B [vocab, rank] of an adapted output projection."""
    target = plan.head
    if target is None:
        return None, None
    A, B = adapter[HEAD]
    weights_a = A.rearrange((RANK, *target.linear.In)).array.astype(hidden.dtype)
    weights_b = B.rearrange((*target.linear.Out, RANK)).array.astype(hidden.dtype)
    if key is not None and plan.dropout:
        keep = jax.random.bernoulli(key, 1 - plan.dropout, hidden.shape)
        hidden = jnp.where(keep, hidden / (1 - plan.dropout), 0).astype(hidden.dtype)
    return jnp.einsum("gse,re->gsr", hidden, weights_a) * target.scales[0], weights_b


class LoraLinear(eqx.Module):
    """A frozen linear layer with its low-rank path; inside a stack, one layer of it.

    Attributes:
        wrapped: The frozen layer.
        A: {lora_rank, in…}.
        B: {out…, lora_rank}.
        scales: Scalar {} where layers differ, else None.
        scale: What all layers share.
        dropout: Probability that an input of A is dropped; needs a key.
    """

    wrapped: hnn.Linear
    A: NamedArray
    B: NamedArray
    scales: NamedArray | None
    scale: float = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __call__(self, x: NamedArray, *, key: jax.Array | None = None) -> NamedArray:
        """Both paths, added."""
        inner = x
        if self.dropout and key is not None:
            keep = hax.random.bernoulli(key, x.axes, 1 - self.dropout)
            inner = hax.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)
        scale = self.scale if self.scales is None else self.scales.array.astype(x.dtype)
        out = self.wrapped(x)
        return frozen.output_of(self.wrapped, out + self._low_rank(inner, scale).rearrange(out.axes))

    def _low_rank(self, x: NamedArray, scale: float | jax.Array) -> NamedArray:
        In, Out = (axes if isinstance(axes, tuple) else (axes,) for axes in (self.wrapped.In, self.wrapped.Out))
        tokens = tuple(axis for axis in x.axes if axis not in In)
        a = self.A.rearrange((RANK, *In)).array.reshape(-1, hax.axis_size(In))
        # The scale goes to the smallest array.
        b = self.B.rearrange((*Out, RANK)).array.reshape(hax.axis_size(Out), -1) * scale
        flat = x.rearrange((*tokens, *In)).array.reshape(-1, hax.axis_size(In))
        wide = low_rank.low_rank(flat, a.astype(x.dtype), b.astype(x.dtype))
        return hax.named(wide.reshape([axis.size for axis in (*tokens, *Out)]), (*tokens, *Out))


def _shapes(target: LoraTarget) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    linear = target.linear
    stack = () if linear.Layers is None else (linear.Layers,)
    return (*stack, target.rank_axis, *linear.In), (*stack, *linear.Out, target.rank_axis)


def shapes(plan: LoraPlan) -> dict[str, tuple[tuple[Axis, ...], tuple[Axis, ...]]]:
    """Axes of A and B for each adapted path."""
    return {target.linear.path: _shapes(target) for target in plan.targets}


def _wanted(name: str, config: LoraConfig) -> bool:
    if any(_ends_with(name, excluded) for excluded in config.exclude_modules):
        return False
    match config.target_modules:
        case None:
            return True
        case str() as pattern:
            return re.fullmatch(pattern, name) is not None
        case listed:
            return any(_ends_with(name, wanted) for wanted in listed)


def _ends_with(name: str, part: str) -> bool:
    return name == part or name.endswith("." + part)


def _rank(name: str, config: LoraConfig) -> int:
    return int(_match(config.rank_pattern, name, config.r))


def _match[T: (int, float)](patterns: Mapping[str, T], name: str, default: T) -> T:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _check_known(config: LoraConfig, names: list[str]) -> None:
    listed = config.target_modules if isinstance(config.target_modules, list) else []
    for wanted in listed:
        if not any(_ends_with(name, wanted) for name in names):
            raise _unknown("lora.target_modules", wanted, names)
    for field, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for key in patterns:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in names):
                raise _unknown(f"lora.{field}", key, names)


def _unknown(field: str, wanted: str, names: list[str]) -> errors.ConfigError:
    leaves = _leaves(names)
    near = difflib.get_close_matches(wanted, leaves, 1, cutoff=0.0)
    return errors.ConfigError(
        f"{field} names {wanted}, which no linear layer of this model is called; the nearest is {near[0]}.",
        hint=f"The linear layers of this model: {', '.join(leaves)}.",
    )


def _leaves(names: list[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _check_rank(spec: LinearSpec, rank: int) -> None:
    inputs, outputs = hax.axis_size(spec.In), hax.axis_size(spec.Out)
    if rank > min(inputs, outputs):
        raise errors.ConfigError(
            f"lora.r is {rank}, above the smallest dimension of {spec.leaf} ({inputs} x {outputs}).",
            hint=f"Set lora.r to at most {min(inputs, outputs)}, or leave {spec.leaf} out of lora.target_modules.",
        )
