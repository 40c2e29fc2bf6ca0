import jax.numpy as jnp
import pytest

from lora_dpo_api.config_file import OptimizerConfig
from lora_dpo_trainer.optimizer import Optimizer


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    optimizer = Optimizer(config, steps)
    return [float(optimizer.learning_rate(step)) for step in range(steps + 1)]


def test_warmup_below_one_is_a_fraction_of_all_steps() -> None:
    found = rates(OptimizerConfig(learning_rate=1e-5, warmup=0.2, lr_schedule="constant"), 10)
    assert found[:4] == pytest.approx([0.0, 5e-6, 1e-5, 1e-5])


def test_warmup_from_one_on_is_a_number_of_steps() -> None:
    assert Optimizer(OptimizerConfig(warmup=4), 100).warmup_steps == 4


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_fall_from_the_peak_to_the_lowest_rate(schedule: str) -> None:
    config = OptimizerConfig(learning_rate=1e-5, warmup=0, lr_schedule=schedule, min_lr_ratio=0.1)
    found = rates(config, 10)
    assert found[0] == pytest.approx(1e-5)
    assert found[5] == pytest.approx(0.55e-5)
    assert found[10] == pytest.approx(1e-6)
    assert found == sorted(found, reverse=True)


def test_gradients_are_clipped_to_the_norm_and_reported_before() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=0, max_grad_norm=1.0, beta1=0.0, beta2=0.0, epsilon=1.0)
    optimizer = Optimizer(config, 1)
    value = {"w": jnp.zeros(2)}
    new, _, norm = optimizer.update({"w": jnp.array([30.0, 40.0])}, optimizer.init(value), value, jnp.array(0))
    assert float(norm) == pytest.approx(50.0)
    assert new["w"].tolist() == pytest.approx([-0.6 / 1.6, -0.8 / 1.8], rel=1e-5)
