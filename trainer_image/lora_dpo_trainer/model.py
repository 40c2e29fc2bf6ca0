"""The frozen base: a Levanter model, read from a Hugging Face checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import equinox as eqx
import haliax as hax
import jax
import jax.numpy as jnp
import numpy as np
from haliax import Axis, NamedArray
from jax.sharding import Mesh, NamedSharding
from levanter.compat.hf_checkpoints import HFCheckpointConverter

from lora_dpo_trainer import architectures, attention, fit, frozen, linears, lora, pretrained, supported
from lora_dpo_trainer import mesh as meshes
from lora_dpo_trainer.splash import Splash

Row = "row"
Pos = "position"


@dataclasses.dataclass(frozen=True, eq=False)
class BaseModel:
    """A frozen base with what must be known of it.

    Attributes:
        module: Levanter's model, a pytree of arrays.
        config: Levanter's configuration of it.
        linears: The linear layers that an adapter can sit on.
        parameter_count: Parameters of the base; tied ones count once.
        source: Hub id, URL or path it came from.
        revision: Hub revision.
        mesh: The devices that it lies on; None: wherever its arrays are.
        split: Whether its matrices are split over the data axis, to be gathered where they are used.
    """

    module: Any
    config: Any
    linears: tuple[linears.LinearSpec, ...]
    parameter_count: int
    source: str
    revision: str | None = None
    mesh: Mesh | None = None
    split: bool = False

    @property
    def gathered(self) -> NamedSharding | None:
        """Where whole weights are wanted when they are used; None where they lie so."""
        return meshes.replicated(self.mesh) if self.split and self.mesh is not None else None

    @property
    def splash(self) -> Splash | None:
        """The attention kernel, where there are TPUs."""
        return None if self.mesh is None else Splash.where_possible(self.mesh)

    @property
    def embed(self) -> Axis:
        """The hidden axis."""
        return self.config.Embed

    @property
    def logits_soft_cap(self) -> float | None:
        """Logits are bent below this bound by tanh (Gemma 2)."""
        cap: float | None = getattr(self.config, "final_logit_softcapping", None)
        return cap


def load_base(
    source: str,
    revision: str | None = None,
    mesh: Mesh | None = None,
    dtype: jnp.dtype | None = None,
    *,
    split: bool = False,
) -> BaseModel:
    """Read a checkpoint into a Levanter model.

    Args:
        source: Hub id, fsspec URL, or path of a folder with config.json and *.safetensors.
        revision: Commit, branch or tag, for hub ids.
        mesh: Where to put the arrays; default: the first device.
        dtype: Of all weights; default bfloat16, or float32 where JAX runs on a CPU.
        split: Split matrices along the hidden axis over the mesh's data axis (FSDP), else keep them whole everywhere.

    Raises:
        ModelNotFound: the folder is incomplete, or the model would not be computed exactly.
        Unreachable: the hub or bucket.
    """
    place = pretrained.Pretrained(source, revision)
    supported.check(place.config(), source)
    folder = place.local_folder((*pretrained.CONFIGS, *pretrained.WEIGHTS)).resolve()
    hf_config = _hf_config(str(folder))
    config = architectures.levanter_config(hf_config)
    converter = HFCheckpointConverter(
        type(config),
        reference_checkpoint=str(folder),
        HfConfigClass=type(hf_config),
        tokenizer=_VocabSize(hf_config.vocab_size),
    )
    mapping = {config.Embed.name: meshes.DATA} if split else {}
    load = functools.partial(
        converter.load_pretrained,
        config.model_type,
        config=config,
        axis_mapping=mapping,
        dtype=dtype or default_dtype(),
    )
    mesh = mesh or meshes.make(jax.devices()[:1])
    # Levanter's reader spreads each tensor over the mesh while it reads, and stages a bounded part of it on the host.
    with hax.partitioning.set_mesh(mesh):
        module = load()
    module = frozen.put(module, frozen.shardings(module, mesh, config.Embed, split=split))
    return _described(module, config, source, revision, mesh, split=split)


def read_config(source: str, revision: str | None = None) -> Any:
    """A checkpoint's `config.json` as `transformers` reads it.

    Raises:
        ModelNotFound: there is none, or the model would not be computed exactly.
        Unreachable: the hub or bucket.
    """
    place = pretrained.Pretrained(source, revision)
    supported.check(place.config(), source)
    return _hf_config(str(place.local_folder(pretrained.CONFIGS).resolve()))


def describe(
    hf_config: Any, source: str, mesh: Mesh, dtype: jnp.dtype | None = None, *, split: bool = False
) -> BaseModel:
    """A base that is not there: its arrays are `jax.ShapeDtypeStruct`, to compile programs for any devices.

    Args:
        hf_config: The model's configuration as `transformers` reads it.
        source: What the model is called.
        mesh: Of devices or of a topology.
        dtype: Of all weights; default bfloat16.
        split: As of `load_base`.
    """
    config = architectures.levanter_config(hf_config)
    Vocab = Axis("vocab", hf_config.vocab_size)
    shapes = eqx.filter_eval_shape(config.model_type.init, Vocab, config, key=jax.random.key(0))
    places = frozen.shardings(shapes, mesh, config.Embed, split=split)
    chosen = dtype or jnp.bfloat16

    def described(leaf: NamedArray, place: NamedSharding) -> NamedArray:
        array = jax.ShapeDtypeStruct(leaf.array.shape, chosen, sharding=place)
        return dataclasses.replace(leaf, array=array)

    module = jax.tree.map(described, shapes, places, is_leaf=lambda node: isinstance(node, NamedArray))
    return _described(module, config, source, None, mesh, split=split)


def size_of(base: BaseModel, adapted: lora.LoraPlan, width: int = 2) -> fit.ModelSize:
    """What decides about the memory of training.

    Args:
        base: The frozen model, there or described.
        adapted: What is adapted.
        width: Bytes of a value.
    """
    config, attention = base.config, base.config.attention
    ends = base.module.embeddings.token_embeddings.weight.size * (1 if config.tie_word_embeddings else 2)
    return fit.ModelSize(
        parameters=base.parameter_count,
        ends=ends,
        embed=config.hidden_dim,
        inner=config.intermediate_dim,
        queries=config.num_heads * attention.head_dim,
        keys=config.num_kv_heads * attention.head_dim,
        layers=config.num_layers,
        adapter=lora.parameter_count(adapted),
        rank=max(max(target.ranks) for target in adapted.targets),
        width=width,
    )


def is_array(leaf: Any) -> bool:
    """Whether a leaf of a model is an array, there or described."""
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _described(module: Any, config: Any, source: str, revision: str | None, mesh: Mesh, *, split: bool) -> BaseModel:
    everywhere = meshes.replicated(mesh)
    there = all(eqx.is_array(leaf) for leaf in jax.tree.leaves(module))

    def place(array: np.ndarray) -> Any:
        if there:
            return jax.device_put(array, everywhere)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=everywhere)

    count = sum(leaf.size for leaf in jax.tree.leaves(module))
    module = attention.install(module, place)
    module = frozen.install(module, everywhere if split else None)
    return BaseModel(module, config, linears.find(module), count, source, revision, mesh, split)


def default_dtype() -> jnp.dtype:
    """bfloat16; float32 on a CPU, which computes nothing faster in less."""
    chosen: jnp.dtype = jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return chosen


def hidden_states(
    module: Any, tokens: NamedArray, positions: NamedArray, mask: attention.PairMask, key: jax.Array | None = None
) -> NamedArray:
    """Final hidden states.

    Args:
        module: Levanter's model, with or without an adapter.
        tokens: int32 {row, position}.
        positions: int32 {row, position}.
        mask: Who attends to whom.
        key: For the adapter's dropout; None switches it off.

    Returns:
        {row, position, embed}.
    """
    return module.activations(tokens, attn_mask=mask, pos_ids=positions, key=key)


def head_weight(base_module: Any, Embed: Axis) -> jax.Array:
    """The output projection without adapter, [vocab, embed]; the embedding's own where they are tied."""
    weight: NamedArray = base_module.get_lm_head()
    return weight.rearrange((base_module.Vocab, Embed)).array


class _VocabSize:
    """Stands for a tokenizer where Levanter only asks for its size."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def _hf_config(folder: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)
