"""The frozen base: a Levanter model, read from a Hugging Face checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import haliax as hax
import jax
import jax.numpy as jnp
from haliax import Axis, NamedArray
from haliax.nn.scan import ScanCheckpointPolicy
from jax.sharding import Mesh
from levanter.compat.hf_checkpoints import HFCheckpointConverter
from levanter.layers.attention import AttentionBackend
from levanter.models.lm_model import LmConfig

from lora_dpo_trainer import attention, errors, linears, pretrained
from lora_dpo_trainer import mesh as meshes

ARCHITECTURES = {
    "apertus": "apertus",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "olmo2": "olmo2",
    "olmo3": "olmo3",
    "qwen2": "qwen",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
}
"""`model_type` of config.json → the name under which Levanter registers its model."""

Row = "row"
Pos = "position"


@dataclasses.dataclass(frozen=True, eq=False)
class BaseModel:
    """A frozen base with what must be known of it.

    Attributes:
        module: Levanter's model, a pytree of arrays.
        config: Levanter's configuration of it.
        linears: The linear layers that an adapter can sit on.
        source: Hub id, URL or path it came from.
        revision: Hub revision.
    """

    module: Any
    config: Any
    linears: tuple[linears.LinearSpec, ...]
    source: str
    revision: str | None = None

    @property
    def parameter_count(self) -> int:
        """Parameters of the base."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.module))

    @property
    def embed(self) -> Axis:
        """The hidden axis."""
        return self.config.Embed


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
        ModelNotFound: the folder is incomplete, or Levanter has no such architecture.
        Unreachable: the hub or bucket.
    """
    place = pretrained.Pretrained(source, revision)
    config = level_config(place.config(), place, remat=remat)
    folder = place.local_folder((*pretrained.CONFIGS, *pretrained.WEIGHTS)).resolve()
    hf_config = _hf_config(str(folder))
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
    if not shard:
        module = jax.device_put(module, meshes.replicated(mesh))
    return wrap(module, config, source, revision)


def wrap(module: Any, config: Any, source: str = "", revision: str | None = None) -> BaseModel:
    """A `BaseModel` from a Levanter model that is already in memory."""
    return BaseModel(attention.install(module), config, linears.find(module), source, revision)


def level_config(hf_config: dict[str, Any], place: pretrained.Pretrained, *, remat: bool) -> Any:
    """Levanter's configuration for a config.json.

    Raises:
        ModelNotFound: Levanter has no such architecture.
    """
    kind = str(hf_config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise errors.ModelNotFound(
            f"{place.name} is of type {kind}, which is not supported.",
            hint=f"Use a model of one of these types: {', '.join(sorted(ARCHITECTURES))}.",
        )
    biased = [name for name in ("attention_bias", "mlp_bias") if hf_config.get(name)]
    if biased:
        raise errors.ModelNotFound(
            f"{place.name} sets {biased[0]}, which Levanter's {kind} model does not have.",
            hint="Use a model whose linear layers have no such bias.",
        )
    LmConfig.get_known_choices()  # registers all
    folder = place.local_folder(pretrained.CONFIGS)
    config = LmConfig.get_choice_class(ARCHITECTURES[kind]).from_hf_config(_hf_config(str(folder.resolve())))
    wanted: dict[str, Any] = {
        "gradient_checkpointing": ScanCheckpointPolicy._mk(remat),
        "attn_backend": AttentionBackend.VANILLA,
        "head_dim": hf_config.get("head_dim"),
    }
    fields = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in wanted.items() if k in fields and v is not None})


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
