from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_dpo_api import config_file
from lora_dpo_api.config_file import AInit, LoraConfig, OptimizerConfig
from lora_dpo_trainer import batch, errors, lora, model, peft_io, step
from lora_dpo_trainer.lora import Adapter, LoraPlan
from lora_dpo_trainer.model import BaseModel
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer
from lora_dpo_trainer.packing import BatchShape
from lora_dpo_trainer.pairs import TokenizedPair


@pytest.fixture(scope="module")
def base() -> BaseModel:
    folder = Path(__file__).parents[1] / "data" / "parity" / "llama-r8" / "base"
    return model.load_base(str(folder))


def start(base: BaseModel, config: LoraConfig) -> tuple[LoraPlan, Adapter]:
    plan = lora.resolve(base.linears, config)
    return plan, lora.init(plan, config, jax.random.key(1))


def some_pairs(count: int) -> list[TokenizedPair]:
    rng = np.random.default_rng(0)
    found = []
    for key in range(count):
        prompt = rng.integers(3, 200, 5)
        sides = [np.concatenate([prompt, rng.integers(3, 200, length)]).astype(np.int32) for length in (6, 9)]
        found.append(TokenizedPair(key, sides[0], np.arange(11) >= 5, sides[1], np.arange(14) >= 5))
    return found


def packed(count: int, groups: int = 1) -> batch.PackedBatch:
    return batch.build(some_pairs(count), BatchShape(groups, 128, 64, count // groups, ((2 * count // groups, 64),)))


def randomized(adapter: Adapter) -> Adapter:
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return jax.tree.unflatten(tree, [0.05 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def test_null_means_every_linear_layer_but_the_excluded_head(base: BaseModel) -> None:
    plan = lora.resolve(base.linears, LoraConfig(r=4))
    leaves = {target.linear.leaf for target in plan.targets}
    assert leaves == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert lora.resolve(base.linears, LoraConfig(r=4, exclude_modules=[])).head is not None


@pytest.mark.parametrize("wanted", [["q_proj", "v_proj"], r".*\.(q_proj|v_proj)"])
def test_layers_are_chosen_by_list_or_regex(base: BaseModel, wanted: list[str] | str) -> None:
    plan = lora.resolve(base.linears, LoraConfig(r=4, target_modules=wanted))
    assert {target.linear.leaf for target in plan.targets} == {"q_proj", "v_proj"}


def test_an_unknown_layer_is_an_error_that_names_the_nearest(base: BaseModel) -> None:
    with pytest.raises(errors.ConfigError, match=r"names q_porj.*nearest is q_proj"):
        lora.resolve(base.linears, LoraConfig(r=4, target_modules=["q_porj"]))


def test_a_rank_above_a_dimension_is_refused(base: BaseModel) -> None:
    with pytest.raises(errors.ConfigError, match=r"lora.r is 33.*k_proj \(64 x 32\)"):
        lora.resolve(base.linears, LoraConfig(r=33))


def test_patterns_set_rank_and_alpha_of_single_layers(base: BaseModel) -> None:
    config = LoraConfig(r=4, alpha=8, rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"up_proj": 4})
    plan, adapter = start(base, config)
    targets = {target.linear.leaf: target for target in plan.targets}
    assert targets["q_proj"].ranks == (4, 2, 4)
    assert targets["q_proj"].scales == (2.0, 4.0, 2.0)
    assert set(targets["up_proj"].scales) == {1.0}
    spare = adapter[targets["q_proj"].linear.path].A["layer", 1]["lora_rank", 2:]
    assert not np.asarray(spare.array).any()


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_rank_stabilised_scaling_divides_by_the_root(base: BaseModel, rslora: bool, scale: float) -> None:
    plan = lora.resolve(base.linears, LoraConfig(r=4, alpha=8, rslora=rslora))
    assert {target.scales[0] for target in plan.targets} == {scale}


@pytest.mark.parametrize("start_mode", [AInit.RANDOM, AInit.ZERO])
def test_the_policy_starts_as_the_reference(base: BaseModel, start_mode: AInit) -> None:
    plan, adapter = start(base, LoraConfig(r=4, exclude_modules=[], a_init_mode=start_mode))
    lora.assert_identity(adapter)
    score = step.make_logprob_step(base, plan)
    np.testing.assert_allclose(score(adapter, packed(2)), score(None, packed(2)), rtol=1e-5)


def test_an_adapter_that_is_not_the_identity_is_refused(base: BaseModel) -> None:
    _, adapter = start(base, LoraConfig(r=4))
    with pytest.raises(errors.BrokenIdentity, match="none is"):
        lora.assert_identity(randomized(adapter))
    with pytest.raises(errors.BrokenIdentity, match="both are zero"):
        lora.assert_identity(jax.tree.map(jnp.zeros_like, adapter))


def test_an_adapter_survives_pefts_layout(base: BaseModel, tmp_path: Path) -> None:
    config = LoraConfig(r=4, exclude_modules=[], rslora=True, rank_pattern={"layers.0.mlp.down_proj": 3})
    plan, adapter = start(base, config)
    adapter = {
        target.linear.path: lora.trim(target, randomized(adapter)[target.linear.path]) for target in plan.targets
    }
    peft_io.save(str(tmp_path), adapter, plan, config, "org/model", "main")
    again = lora.resolve(base.linears, peft_io.load_config(str(tmp_path)))
    read = peft_io.load(str(tmp_path), again)
    expected, same = peft_io.with_one_scale(adapter, plan)
    assert [target.ranks for target in again.targets] == [target.ranks for target in plan.targets]
    for found, written in zip(again.targets, same.targets, strict=True):
        assert found.scales == pytest.approx(written.scales, rel=1e-9)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), read, expected))


def test_one_scale_for_all_layers_is_the_same_function(base: BaseModel) -> None:
    config = LoraConfig(r=4, alpha=8, rank_pattern={"layers.1.mlp.down_proj": 3}, alpha_pattern={"q_proj": 5})
    plan, adapter = start(base, config)
    adapter = {
        target.linear.path: lora.trim(target, randomized(adapter)[target.linear.path]) for target in plan.targets
    }
    folded, same = peft_io.with_one_scale(adapter, plan)
    assert {scale for target in same.targets for scale in target.scales} == {2.0}
    np.testing.assert_allclose(
        step.make_logprob_step(base, same)(folded, packed(2)),
        step.make_logprob_step(base, plan)(adapter, packed(2)),
        rtol=1e-6,
    )


def test_spare_ranks_stay_zero_in_training(base: BaseModel) -> None:
    config = LoraConfig(r=4, rank_pattern={"layers.1.self_attn.q_proj": 2})
    plan, adapter = start(base, config)
    optimizer = Optimizer(OptimizerConfig(learning_rate=1e-3, warmup=0, weight_decay=0.1), 2)
    train = step.make_train_step(base, plan, Objective(), optimizer)
    state = step.init_state(adapter, optimizer, 0)
    for _ in range(2):
        state, _ = train(state, packed(2))
    weights = state.adapter["transformer.layers.stacked.self_attn.q_proj"]
    assert not np.asarray(weights.A["layer", 1]["lora_rank", 2:].array).any()
    assert not np.asarray(weights.B["layer", 1]["lora_rank", 2:].array).any()
    assert np.asarray(weights.B["layer", 1]["lora_rank", :2].array).any()


def test_microbatches_add_up_to_the_whole_step(base: BaseModel) -> None:
    plan, adapter = start(base, LoraConfig(r=4))
    optimizer = Optimizer(OptimizerConfig(learning_rate=1e-3, warmup=0), 2)
    adapter = randomized(adapter)
    goal = Objective(sft_weight=0.5)
    _, one = step.make_train_step(base, plan, goal, optimizer)(
        step.init_state(jax.tree.map(jnp.copy, adapter), optimizer, 0), packed(4)
    )
    _, two = step.make_train_step(base, plan, goal, optimizer, microbatches=2)(
        step.init_state(jax.tree.map(jnp.copy, adapter), optimizer, 0), packed(4, groups=2)
    )
    assert {name: float(value) for name, value in two.items()} == pytest.approx(
        {name: float(value) for name, value in one.items()}, rel=1e-4, abs=1e-6
    )


def test_dropout_is_drawn_anew_each_step_and_is_off_in_evaluation(base: BaseModel) -> None:
    plan, adapter = start(base, LoraConfig(r=4, dropout=0.5, exclude_modules=[]))
    adapter = randomized(adapter)
    optimizer = Optimizer(OptimizerConfig(learning_rate=1e-30, warmup=0), 9)
    train = step.make_train_step(base, plan, Objective(), optimizer)
    state = step.init_state(jax.tree.map(jnp.copy, adapter), optimizer, 0)
    state, first = train(state, packed(2))
    state, second = train(state, packed(2))
    assert float(first["logps/chosen"]) != float(second["logps/chosen"])
    score = step.make_logprob_step(base, plan)
    assert np.array_equal(score(adapter, packed(2)), score(adapter, packed(2)))


def test_the_frozen_base_has_the_compute_type() -> None:
    folder = Path(__file__).parents[1] / "data" / "parity" / "llama-r8" / "base"
    half = model.load_base(str(folder), dtype=jnp.dtype(jnp.bfloat16))
    arrays = [leaf for leaf in jax.tree.leaves(half.module) if isinstance(leaf, jax.Array)]
    assert {leaf.dtype for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.floating)} == {jnp.dtype(jnp.bfloat16)}
    _, adapter = start(half, LoraConfig(r=4))
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype(jnp.float32)}


def test_only_the_adapter_has_gradients_and_optimizer_state(base: BaseModel) -> None:
    plan, adapter = start(base, LoraConfig(r=4))
    optimizer = Optimizer(OptimizerConfig(learning_rate=1e-3), 2)
    state = step.init_state(adapter, optimizer, 0)
    train = step.make_train_step(base, plan, Objective(), optimizer)
    after, _ = jax.eval_shape(train, state, packed(2))
    trainable = sum(leaf.size for leaf in jax.tree.leaves(adapter))
    moments = sum(leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim > 0)
    assert moments == 2 * trainable
    assert trainable == lora.parameter_count(plan) < base.parameter_count / 4


@pytest.mark.parametrize(
    ("written", "zero"),
    [
        ("", "B"),
        ("zero_init_b: true", "B"),
        ("zero_init_b: false", "B"),
        ("a_init_mode: random", "B"),
        ("zero_init_b: true, a_init_mode: random", "B"),
        ("zero_init_b: false, a_init_mode: random", "B"),
        ("a_init_mode: zero", "A"),
        ("zero_init_b: false, a_init_mode: zero", "A"),
    ],
)
def test_however_it_is_written_exactly_one_factor_starts_at_zero(base: BaseModel, written: str, zero: str) -> None:
    data = "data: {components: {a: {source: {type: url, train_urls: [x]}}}}"
    settings = config_file.load(f"{data}\ninitialize_from_hf: m\nlora: {{r: 4, {written}}}").config.lora
    adapter = lora.init(lora.resolve(base.linears, settings), settings, jax.random.key(0))
    lora.assert_identity(adapter)
    for weights in adapter.values():
        assert [name for name in "AB" if not np.asarray(getattr(weights, name).array).any()] == [zero]


def test_both_factors_at_zero_are_refused_before_anything_runs() -> None:
    data = "data: {components: {a: {source: {type: url, train_urls: [x]}}}}"
    with pytest.raises(config_file.ConfigError, match="both factors at zero"):
        config_file.load(f"{data}\ninitialize_from_hf: m\nlora: {{zero_init_b: true, a_init_mode: zero}}")
