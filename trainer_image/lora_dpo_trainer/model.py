"""The frozen base: a Levanter model, read from a Hugging Face checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import haliax as hax
import jax
import jax.numpy as jnp
from haliax import Axis, NamedArray
from jax.sharding import Mesh
from levanter.compat.hf_checkpoints import HFCheckpointConverter

from lora_dpo_trainer import architectures, attention, linears, pretrained, supported
from lora_dpo_trainer import mesh as meshes

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
    """

    module: Any
    config: Any
    linears: tuple[linears.LinearSpec, ...]
    parameter_count: int
    source: str
    revision: str | None = None

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
    remat: bool = False,
    shard: bool = False,
) -> BaseModel:
    """Read a checkpoint into a Levanter model.

    Args:
        source: Hub id, fsspec URL, or path of a folder with config.json and *.safetensors.
        revision: Commit, branch or tag, for hub ids.
        mesh: Where to put the arrays; default: the first device.
        dtype: Of all weights; default bfloat16, or float32 where JAX runs on a CPU.
        remat: Recompute each layer's activations in the backward pass.
        shard: Split weights along the hidden axis over the mesh's data axis (FSDP), else keep them whole everywhere.

    Raises:
        ModelNotFound: the folder is incomplete, or the model would not be computed exactly.
        Unreachable: the hub or bucket.
    """
    place = pretrained.Pretrained(source, revision)
    supported.check(place.config(), source)
    folder = place.local_folder((*pretrained.CONFIGS, *pretrained.WEIGHTS)).resolve()
    hf_config = _hf_config(str(folder))
    config = architectures.levanter_config(hf_config, remat=remat)
    converter = HFCheckpointConverter(
        type(config),
        reference_checkpoint=str(folder),
        HfConfigClass=type(hf_config),
        tokenizer=_VocabSize(hf_config.vocab_size),
    )
    mapping = {config.Embed.name: meshes.DATA} if shard else {}
    load = functools.partial(
        converter.load_pretrained,
        config.model_type,
        config=config,
        axis_mapping=mapping,
        dtype=dtype or default_dtype(),
    )
    mesh = mesh or meshes.make(jax.devices()[:1])
    # Levanter's reader spreads each tensor over the mesh while it reads.
    with hax.partitioning.set_mesh(mesh):
        module = load()
    count = sum(leaf.size for leaf in jax.tree.leaves(module))
    everywhere = meshes.replicated(mesh)
    module = attention.install(module, lambda array: jax.device_put(array, everywhere))
    if not shard:
        module = jax.device_put(module, everywhere)
    return BaseModel(module, config, linears.find(module), count, source, revision)


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
