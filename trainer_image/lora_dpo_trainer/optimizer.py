"""AdamW over the adapter, with the learning-rate schedules of Hugging Face's trainer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lora_dpo_api.config_file import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW, resolved for a run.

    Attributes:
        config: The settings.
        total_steps: Steps of the run, which the schedule spans.
    """

    config: OptimizerConfig
    total_steps: int

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises from 0."""
        warmup = self.config.warmup
        return math.ceil(warmup * self.total_steps) if warmup < 1 else int(warmup)

    def learning_rate(self, step: jax.Array | int) -> jax.Array:
        """Learning rate of step `step`, counted from 0; float32 scalar."""
        config, warmup = self.config, self.warmup_steps
        now = jnp.asarray(step, jnp.float32)
        done = jnp.clip((now - warmup) / max(1, self.total_steps - warmup), 0.0, 1.0)
        match config.lr_schedule:
            case "constant":
                factor = jnp.ones((), jnp.float32)
            case "linear":
                factor = 1 - done
            case "cosine":
                factor = 0.5 * (1 + jnp.cos(math.pi * done))
        factor = config.min_lr_ratio + (1 - config.min_lr_ratio) * factor
        return config.learning_rate * jnp.where(now < warmup, now / max(1, warmup), factor)

    def init(self, adapter: Any) -> Any:
        """Optimizer state for an adapter: two float32 moments a parameter."""
        return self._transform().init(adapter)

    def update(self, grads: Any, state: Any, adapter: Any, step: jax.Array) -> tuple[Any, Any, jax.Array]:
        """One step.

        Args:
            grads: Same tree as `adapter`.
            state: From `init` or the last `update`.
            adapter: The parameters.
            step: int32 scalar, steps done before.

        Returns:
            The new adapter, the new state, and the norm of all gradients before clipping.
        """
        norm = optax.global_norm(grads)
        if self.config.max_grad_norm is not None:
            # The small term is torch's, which TRL clips with.
            factor = jnp.minimum(1.0, self.config.max_grad_norm / (norm + 1e-6))
            grads = jax.tree.map(lambda grad: grad * factor, grads)
        updates, state = self._transform().update(grads, state, adapter)
        rate = self.learning_rate(step)
        adapter = jax.tree.map(lambda value, update: value - rate * update, adapter, updates)
        return adapter, state, norm

    def _transform(self) -> optax.GradientTransformation:
        config = self.config
        return optax.chain(
            optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
            optax.add_decayed_weights(config.weight_decay),
        )
