"""The jitted programs: train step, evaluation, log-probabilities.

Chosen and rejected answers go through one forward; gradients exist for the adapter only; the frozen base is an
argument of every program, so that no program holds a copy of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import haliax as hax
import jax
import jax.numpy as jnp
import numpy as np

from lora_dpo_trainer import frozen, host_memory, logprobs, lora, model, objective
from lora_dpo_trainer.attention import PairMask
from lora_dpo_trainer.batch import PackedBatch
from lora_dpo_trainer.lora import Adapter, LoraPlan
from lora_dpo_trainer.model import BaseModel
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer

type Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that a checkpoint holds of the computation.

    Attributes:
        adapter: float32 factors.
        opt_state: Optax's state.
        step: int32 scalar, steps completed.
        key: Root key of dropout; step n uses `fold_in(key, n)`, so that resuming is exact.
    """

    adapter: Adapter
    opt_state: Any
    step: jax.Array
    key: jax.Array


type Between = Callable[[Any], None]
"""Called between two microbatches with the sums so far, which it may wait for. May raise: the state is still whole."""


type Sums = tuple[Adapter, Metrics]
"""Gradients and `objective.METRICS`, added up over microbatches."""


def go_on(_: Any) -> None:
    """Stop nowhere."""


class TrainStep(Protocol):
    """One step.

    The given state is donated: it must not be used again. Metrics are float32 scalars: `objective.METRICS`,
    `objective.QUANTILES`, `grad_norm` (before clipping) and `learning_rate`.
    """

    def __call__(self, state: TrainState, batch: PackedBatch, between: Between = ..., /) -> tuple[TrainState, Metrics]:
        """The state after the step, and its metrics."""
        ...


type EvalStep = Callable[[Adapter, PackedBatch], Metrics]
"""`sums = eval_step(adapter, batch)`: `objective.METRICS` summed over the batch's pairs, and `pairs`, their number."""

type LogprobStep = Callable[[Adapter | None, PackedBatch], jax.Array]
"""`logps = logprob_step(adapter, batch)`: float32 [groups, pairs, 2]; without adapter, those of the base."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A jitted function and the base's arrays, its first argument.

    Attributes:
        jitted: By `jax.jit`.
        arrays: The frozen base; described but not there where a program is only compiled.
    """

    jitted: Any
    arrays: Any
    _compiled: set[tuple[tuple[int, ...], ...]] = dataclasses.field(default_factory=set)

    def __call__(self, *given: Any) -> Any:
        """Run it; compiled first for shapes that it has not seen."""
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(given))
        if shapes not in self._compiled:
            self.trace(*given).lower().compile()
            host_memory.give_back()  # what the compiler leaves, before the program takes its own
            self._compiled.add(shapes)
        return self.jitted(self.arrays, *given)

    def trace(self, *given: Any) -> Any:
        """JAX's trace of it, from which it is lowered and compiled without being run."""
        return self.jitted.trace(self.arrays, *given)


@dataclasses.dataclass(frozen=True, eq=False)
class WholeStep:
    """A `TrainStep` of one program.

    Attributes:
        program: Takes state and batch.
    """

    program: Program

    def __call__(self, state: TrainState, batch: PackedBatch, _: Between = go_on, /) -> tuple[TrainState, Metrics]:
        """Do the step."""
        result: tuple[TrainState, Metrics] = self.program(state, batch)
        return result

    def trace(self, state: TrainState, batch: PackedBatch) -> Any:
        """JAX's trace of the program that computes gradients, run once for each microbatch."""
        return self.program.trace(state, batch)


@dataclasses.dataclass(frozen=True, eq=False)
class StepInParts:
    """A `TrainStep` of one program for each microbatch, so that a step of many seconds can be abandoned between two.

    Attributes:
        microbatches: Their number.
        add: Adds a microbatch's gradients and metrics to the sums so far, which are donated.
        update: The state after the step, from the whole sums.
    """

    microbatches: int
    add: Program
    update: Any

    def __call__(
        self, state: TrainState, batch: PackedBatch, between: Between = go_on, /
    ) -> tuple[TrainState, Metrics]:
        """Do the step."""
        sums, margins = _start(state.adapter), []
        for index in range(self.microbatches):
            if index:
                between(sums)
            sums, of_part = self.add(sums, state, batch, np.int32(index))
            margins.append(of_part)
        result: tuple[TrainState, Metrics] = self.update(state, *sums, jnp.stack(margins))
        return result

    def trace(self, state: TrainState, batch: PackedBatch) -> Any:
        """JAX's trace of the program that computes gradients, run once for each microbatch."""
        scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=state.step.sharding)
        sums = state.adapter, dict.fromkeys(objective.METRICS, scalar)  # gradients are of the adapter's own shapes
        return self.add.trace(sums, state, batch, jax.ShapeDtypeStruct((), jnp.int32))


def init_state(adapter: Adapter, optimizer: Optimizer, seed: int) -> TrainState:
    """The state before the first step."""
    return TrainState(adapter, optimizer.init(adapter), jnp.zeros((), jnp.int32), jax.random.key(seed))


def make_train_step(
    base: BaseModel, plan: LoraPlan, goal: Objective, optimizer: Optimizer, *, microbatches: int = 1
) -> WholeStep | StepInParts:
    """Build the train step; its programs are compiled once for each `BatchShape`.

    Args:
        base: The frozen base.
        plan: What is adapted.
        goal: What is minimised.
        optimizer: Updates the adapter.
        microbatches: Groups that follow one another on each data shard, to save memory. Each is a program of its own,
            so that a step of many seconds can be abandoned between two.

    The reference log-probabilities come from the batch; when `batch.reference` is None, an adapter-less forward of
    the same program computes them.
    """
    arrays, static = eqx.partition(base.module, model.is_array)

    def part_loss(
        adapter: Adapter, module: Any, part: PackedBatch, totals: objective.Totals, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, jax.Array]]:
        policy = answer_logprobs(base, module, part, adapter, plan, key)
        reference = part.reference
        if reference is None:
            reference = jax.lax.stop_gradient(answer_logprobs(base, module, part))
        loss, metrics = _objective(goal, part, policy, reference, totals)
        return loss, (metrics, objective.reward_margins(goal, policy, jnp.asarray(reference), part.valid))

    slope = jax.grad(part_loss, has_aux=True)

    def update(state: TrainState, grads: Any, metrics: Metrics, margins: jax.Array) -> tuple[TrainState, Metrics]:
        adapter, opt_state, norm = optimizer.update(grads, state.opt_state, state.adapter, state.step)
        metrics = metrics | objective.quantiles(margins)
        metrics = metrics | {"grad_norm": norm, "learning_rate": optimizer.learning_rate(state.step)}
        return TrainState(adapter, opt_state, state.step + 1, state.key), metrics

    def whole(arrays: Any, state: TrainState, batch: PackedBatch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grads, (metrics, margins) = slope(state.adapter, eqx.combine(arrays, static), batch, _totals(batch), key)
        return update(state, grads, metrics, margins)

    def add(arrays: Any, sums: Sums, state: TrainState, batch: PackedBatch, index: jax.Array) -> tuple[Sums, jax.Array]:
        part = jax.tree.map(lambda x: _split(x, microbatches)[index], batch)
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), index)
        grads, (metrics, margins) = slope(state.adapter, eqx.combine(arrays, static), part, _totals(batch), key)
        return jax.tree.map(jnp.add, sums, (grads, metrics)), margins

    if microbatches == 1:
        return WholeStep(Program(jax.jit(whole, donate_argnums=(1,)), arrays))
    return StepInParts(
        microbatches, Program(jax.jit(add, donate_argnums=(1,)), arrays), jax.jit(update, donate_argnums=(0,))
    )


def make_eval_step(base: BaseModel, plan: LoraPlan, goal: Objective) -> Program:
    """Build the evaluation of a batch (an `EvalStep`): sums, so that uneven batches add up exactly."""
    arrays, static = eqx.partition(base.module, model.is_array)

    def run(arrays: Any, adapter: Adapter, batch: PackedBatch) -> Metrics:
        module = eqx.combine(arrays, static)
        policy = answer_logprobs(base, module, batch, adapter, plan)
        reference = batch.reference if batch.reference is not None else answer_logprobs(base, module, batch)
        totals = _totals(batch)
        _, metrics = _objective(goal, batch, policy, reference, totals)
        return {name: value * totals.pairs for name, value in metrics.items()} | {"pairs": totals.pairs}

    return Program(jax.jit(run), arrays)


def make_logprob_step(base: BaseModel, plan: LoraPlan | None = None) -> Program:
    """Build the forward that only returns log-probabilities (a `LogprobStep`): for the reference and for probe rows."""
    arrays, static = eqx.partition(base.module, model.is_array)

    def run(arrays: Any, adapter: Adapter | None, batch: PackedBatch) -> jax.Array:
        return answer_logprobs(base, eqx.combine(arrays, static), batch, adapter, plan)

    return Program(jax.jit(run), arrays)


def answer_logprobs(
    base: BaseModel,
    module: Any,
    batch: PackedBatch,
    adapter: Adapter | None = None,
    plan: LoraPlan | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Summed log-probabilities of all answers, float32 [groups, pairs, 2], 0 where there is no pair.

    Arguments as of `slot_logprobs`.
    """
    values = slot_logprobs(base, module, batch, adapter, plan, key)
    return logprobs.answer_sums(values, batch.slot_answer, batch.valid.shape[1])


def slot_logprobs(
    base: BaseModel,
    module: Any,
    batch: PackedBatch,
    adapter: Adapter | None = None,
    plan: LoraPlan | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Log-probabilities of all predicted tokens.

    Args:
        base: Describes the model.
        module: Its arrays (those of `base`, as arguments of the program).
        batch: What is scored.
        adapter: None for the base alone.
        plan: Of the adapter.
        key: For dropout; None switches it off.

    Returns:
        float32 [groups, slots]; of no meaning in the padding.
    """
    module = frozen.gather_ends(module, base.gathered)
    policy = module if adapter is None or plan is None else lora.attach(module, adapter, plan)
    trunk_key, head_key = (None, None)
    if key is not None and plan is not None and plan.dropout:
        trunk_key, head_key = jax.random.split(key)
    axes = tuple(map(hax.Axis, (model.Row, model.Pos), batch.tokens.shape))
    tokens, positions = hax.named(batch.tokens, axes), hax.named(batch.positions, axes)
    mask = PairMask.make(batch.sides, batch.cells, base.splash)
    hidden = model.hidden_states(policy, tokens, positions, mask, trunk_key)
    states = hidden.rearrange((*axes, base.embed)).array
    picked = jnp.take_along_axis(states, batch.slot_source[..., None], axis=1)
    low_rank, head_b = (None, None)
    if adapter is not None and plan is not None:
        low_rank, head_b = lora.head_low_rank(picked, adapter, plan, head_key)
    head = model.head_weight(module, base.embed)
    return logprobs.token_logprobs(picked, head, batch.slot_target, low_rank, head_b, base.logits_soft_cap)


def answer_counts(batch: PackedBatch) -> jax.Array:
    """Predicted tokens of each answer, float32 [groups, pairs, 2]."""
    ones = jnp.ones(batch.slot_answer.shape, jnp.float32)
    return logprobs.answer_sums(ones, batch.slot_answer, batch.valid.shape[1])


def _objective(
    goal: Objective, part: PackedBatch, policy: jax.Array, reference: Any, totals: objective.Totals
) -> tuple[jax.Array, Metrics]:
    """`objective.evaluate` over all groups."""
    logps, cached, counts = (jnp.asarray(x).reshape(-1, 2) for x in (policy, reference, answer_counts(part)))
    return objective.evaluate(goal, logps, cached, counts, part.valid.reshape(-1), totals)


def _totals(batch: PackedBatch) -> objective.Totals:
    pairs = jnp.maximum(jnp.sum(batch.valid).astype(jnp.float32), 1.0)
    return objective.Totals(pairs, jnp.maximum(jnp.sum(answer_counts(batch)[..., 0]), 1.0))


def _nothing(adapter: Adapter) -> Sums:
    return jax.tree.map(jnp.zeros_like, adapter), dict.fromkeys(objective.METRICS, jnp.zeros(()))


_start = jax.jit(_nothing)


def _split(x: jax.Array, microbatches: int) -> jax.Array:
    """[shards * microbatches, …] → [microbatches, shards, …], each shard keeping its own groups."""
    return jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1)
