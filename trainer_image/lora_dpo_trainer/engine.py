"""The numerical core put together for one run: base, adapter plan, data order and compiled steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import (
    batch,
    flops,
    host_memory,
    identity,
    layout,
    lora,
    mesh,
    metrics,
    mixture,
    model,
    optimizer,
    packing,
    peft_io,
    prepared,
    reference,
    remat,
    scoring,
    sources,
    step,
)
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.pairs import TokenizedPair
from lora_dpo_trainer.step import TrainState

type ReferenceLogprobs = Mapping[str, np.ndarray]
"""Split name → float32 [pairs, 2], by key; empty where the steps compute them."""


@dataclasses.dataclass(frozen=True, eq=False)
class HostBatch:
    """A step's batch on its way to the devices.

    Attributes:
        arrays: Placed over the mesh.
        pairs: Real pairs in it.
        tokens: Real tokens in it, each shared prefix counted once.
        flops: Necessary to train on it.
    """

    arrays: batch.PackedBatch
    pairs: int
    tokens: int
    flops: float

    @property
    def pad_fraction(self) -> float:
        """Part of its positions that hold no token."""
        return 1.0 - self.tokens / self.arrays.tokens.size


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """Everything that the loop asks of the computation.

    Attributes:
        config: The configuration.
        run_id: Name of the run.
        pairs: Prepared pairs.
        keys: int64 [epoch], the pairs of one epoch; the plan counts in positions of it.
        plan: Order and shapes of the training steps.
        devices: The mesh.
        base: The frozen model.
        adapted: What is adapted.
        work: What a step must compute.
        compute_dtype: `float32` or `bfloat16`.
    """

    config: TrainerConfig
    run_id: str
    pairs: prepared.Prepared
    keys: np.ndarray
    plan: packing.BatchPlan
    devices: Mesh
    base: model.BaseModel
    adapted: lora.LoraPlan
    work: flops.Work
    optimizer: optimizer.Optimizer
    compute_dtype: str
    train_step: step.TrainStep
    eval_step: step.EvalStep
    logprob_step: step.LogprobStep
    reference_logprobs: ReferenceLogprobs = dataclasses.field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.plan.total_steps

    @property
    def validation_pairs(self) -> int:
        """Pairs held out."""
        return len(self.pairs.validation)

    def epoch(self, steps: int) -> float:
        """Epochs done after so many steps."""
        return self.plan.epoch_of_step(steps)

    def fresh_state(self) -> TrainState:
        """The state before the first step, on every device.

        Raises:
            BrokenIdentity: the adapter would not start as the identity.
        """
        start = self.config.adapter.init_from
        if start is not None:
            adapter = peft_io.load(start, self.adapted)
        else:
            adapter = lora.init(self.adapted, self.config.lora, jax.random.key(self.config.trainer.seed))
            lora.assert_identity(adapter)
        state = step.init_state(adapter, self.optimizer, self.config.trainer.seed)
        return mesh.put_everywhere(state, self.devices)

    def parameter_counts(self) -> dict[str, float]:
        """The guide's three metrics about size."""
        total, trainable = self.base.parameter_count, lora.parameter_count(self.adapted)
        return {
            "parameter_count": total + trainable,
            "trainable_parameter_count": trainable,
            "fraction_trainable": trainable / (total + trainable),
        }

    def facts(self) -> dict[str, str]:
        """What a model card tells of a run beside its settings."""
        counts = self.parameter_counts()
        return {
            "run": self.run_id,
            "training pairs": str(len(self.pairs.train)),
            "validation pairs": str(self.validation_pairs),
            "components": ", ".join(self.config.data.components),
            "prepared pairs": self.pairs.manifest.digest,
            "epochs": f"{self.epoch(self.total_steps):.3g}",
            "seed": str(self.config.trainer.seed),
            "computed in": self.compute_dtype,
            "trainable parameters": f"{int(counts['trainable_parameter_count'])} "
            f"({100 * counts['fraction_trainable']:.3g} % of all)",
        }

    def batch(self, number: int) -> HostBatch:
        """The batch of a step, counted from 0; a function of seed and step, safe to call ahead in a thread."""
        positions = self.plan.keys_of_step(number)
        rows = [self.pairs.train[int(key)] for key in self.keys[positions]]
        return self._placed(rows, self.plan.shape_of(positions), sources.TRAIN)

    def start(
        self, state: TrainState, placed: HostBatch, between: step.Between = step.go_on
    ) -> tuple[TrainState, step.Metrics]:
        """Start one step; the given state is used up.

        Args:
            state: The training state.
            placed: The batch.
            between: Called between two microbatches; when it raises, the given state is still whole.

        Returns:
            The new state, and metrics for `read`; neither need be computed yet.
        """
        state, values = self.train_step(state, placed.arrays, between)
        for value in values.values():
            value.copy_to_host_async()
        return state, values

    def read(self, values: step.Metrics) -> dict[str, float]:
        """The metrics of a step under their names, once it is complete."""
        found = {name: float(value) for name, value in jax.device_get(values).items()}
        return found | metrics.derived(found, self.config.beta)

    def train(self, state: TrainState, placed: HostBatch) -> tuple[TrainState, dict[str, float]]:
        """One step from start to end: `start` and `read`."""
        state, values = self.start(state, placed)
        return state, self.read(values)

    @property
    def peak_flops(self) -> float | None:
        """FLOP/s that the devices could do at most; None where that is not known."""
        return flops.peak(list(self.devices.devices.flat))

    def validation_batches(self, max_pairs: int) -> Iterator[HostBatch]:
        """The validation pairs, each once."""
        split = self.pairs.validation
        count = min(len(split), max_pairs)
        size = min(self.pairs_at_once, _multiple(count, self.shards))
        plan = packing.BatchPlan.make(
            split.pair_lengths(np.arange(count)), size, shuffle=False, groups=self.shards, max_shapes=1
        )
        for number in range(plan.total_steps):
            keys = plan.keys_of_step(number)
            yield self._placed([split[int(key)] for key in keys], plan.shapes[-1], sources.VALIDATION)

    def evaluate(self, state: TrainState, placed: HostBatch) -> dict[str, float]:
        """Sums of the metrics over a batch's pairs, and `pairs`, their number."""
        values = jax.device_get(self.eval_step(state.adapter, placed.arrays))
        return {name: float(value) for name, value in values.items()}

    def logprobs(self, adapter: lora.Adapter | None, rows: Sequence[TokenizedPair]) -> np.ndarray:
        """Log-probabilities of a few pairs, float32 [pairs, 2]; without adapter those of the base."""
        return scoring.logprobs(self.logprob_step, adapter, rows, groups=self.shards, place=self._put)

    @property
    def shards(self) -> int:
        """In how many parts a batch is split over the devices."""
        return mesh.data_shards(self.devices)

    @property
    def pairs_at_once(self) -> int:
        """Pairs of one forward outside a step: those of a microbatch, for which there is memory."""
        return self.config.trainer.train_batch_size // self.plan.groups * self.shards

    def reference_scorer(self) -> reference.Scorer:
        """Runs what the policy is compared with: the base itself, or the base with the reference's own adapter."""
        folder, adapter, forward = self.config.reference.adapter, None, self.logprob_step
        if folder is not None:
            adapted = lora.resolve(self.base.linears, peft_io.load_config(folder))
            adapter = mesh.put_everywhere(peft_io.load(folder, adapted), self.devices)
            forward = step.make_logprob_step(self.base, adapted)
        return reference.Scorer(
            forward=forward,
            pairs_per_batch=self.pairs_at_once,
            adapter=adapter,
            groups=self.shards,
            place=self._put,
            collect=scoring.whole,
        )

    def _placed(self, rows: Sequence[TokenizedPair], shape: packing.BatchShape, split: str) -> HostBatch:
        known = self.reference_logprobs.get(split)
        logps = None if known is None else known[[row.key for row in rows]]
        packed = jax.tree.map(self._put, batch.build(rows, shape, logps))
        lengths = packing.PairLengths.of(rows)
        work = self.work.step(lengths, reference=logps is None)
        return HostBatch(packed, len(rows), int(lengths.encoded.sum()), work)

    def _put(self, array: np.ndarray) -> jax.Array:
        # Every process builds the whole batch and keeps its own part: no token crosses the network.
        split = mesh.split_first(self.devices)
        return jax.make_array_from_callback(array.shape, split, lambda index: array[index])


def build(config: TrainerConfig, pairs: prepared.Prepared, owner: identity.RunIdentity) -> Engine:
    """Load the base and put a run together.

    Raises:
        ConfigError: the adapter does not fit the model, or the batch not the devices.
        ModelNotFound: there is no such checkpoint.
    """
    host_memory.map_large_blocks()
    devices = mesh.make()
    keys = mixture.keys_of_epoch(pairs.train.component, tuple(config.data.components), config.data.train_weights)
    lengths = pairs.train.pair_lengths(keys)
    dtype = layout.dtype(config)
    chosen = layout.choose(config, lengths, owner.total_steps, devices, dtype)
    plan = layout.plan(config, lengths, owner.total_steps, devices, chosen.microbatches)
    base = model.load_base(config.initialize_from_hf, config.revision, devices, dtype, split=chosen.split)
    host_memory.give_back()
    base = dataclasses.replace(base, module=remat.apply(base.module, chosen.keep))
    adapted = lora.resolve(base.linears, config.lora)
    goal = goal_of(config)
    updates = optimizer.Optimizer(config.optimizer, owner.total_steps)
    return Engine(
        config,
        owner.run_id,
        pairs,
        keys,
        plan,
        devices,
        base,
        adapted,
        flops.Work.of(base.linears, adapted),
        updates,
        str(dtype),
        step.make_train_step(base, adapted, goal, updates, microbatches=chosen.microbatches),
        step.make_eval_step(base, adapted, goal),
        step.make_logprob_step(base, adapted),
    )


def goal_of(config: TrainerConfig) -> Objective:
    """What is minimised."""
    return Objective(config.loss.type, config.beta, config.loss.label_smoothing, config.loss.sft_weight)


def _multiple(value: int, of: int) -> int:
    return -(-value // of) * of
