"""Attention of sides by JAX's splash kernel for TPUs: blocks above the diagonal are skipped, scores stay on the chip.

A side needs no mask but the causal one: what lies behind its end comes later than all of its tokens, and nothing is
read from there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, PartitionSpec

from lora_dpo_trainer import mesh as meshes
from lora_dpo_trainer import remat

LANES = 128
"""Lengths and head sizes are filled up to multiples of a TPU's lanes."""
_BLOCKS = (1024, 512, 256, LANES)
_WASTE = 1.1
"""So much longer than needed a side may be made for the sake of a larger block."""


@dataclasses.dataclass(frozen=True)
class Splash:
    """The kernel, on the devices of a mesh.

    Attributes:
        mesh: Rows are split over its data axis; each device runs a kernel of its own.
        interpret: Run the kernel's statements one by one, on any platform; for tests.
    """

    mesh: Mesh
    interpret: bool = False

    @classmethod
    def where_possible(cls, mesh: Mesh) -> Splash | None:
        """On TPUs; nothing else runs the kernel."""
        return cls(mesh) if mesh.devices.flat[0].platform == "tpu" else None

    def on_each_device(
        self, function: Callable[..., jax.Array], inner: Callable[..., jax.Array], window: Any, *arrays: Any
    ) -> jax.Array:
        """`function(inner, window, *arrays)`, where each device has its rows of the arrays."""
        rows = PartitionSpec(meshes.DATA)
        split = jax.tree.map(lambda _: rows, arrays)
        # The checks of replication know no kernels.
        options = {"mesh": self.mesh, "out_specs": rows, "check_vma": False}
        if isinstance(window, jax.Array):
            whole = functools.partial(function, inner)
            return cast(jax.Array, jax.shard_map(whole, in_specs=(PartitionSpec(), *split), **options)(window, *arrays))
        fixed = functools.partial(function, inner, window)
        return cast(jax.Array, jax.shard_map(fixed, in_specs=split, **options)(*arrays))

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        window: int | jax.Array | None = None,
        *,
        windows: Sequence[int | None] = (),
        soft_cap: float | None = None,
    ) -> jax.Array:
        """Causal softmax attention within the sides of one device.

        Args:
            q: [row, side, length, kv_head, group, head_size], already scaled.
            k: [row, side, length, kv_head, head_size].
            v: As k.
            window: Sliding window; an array where it is only known while the program runs.
            windows: What such an array may hold (None: everything is seen), for a kernel is made for one window.
            soft_cap: Scores are bent below this bound by tanh.

        Returns:
            As q.
        """
        rows, sides, length, kv_heads, group, size = q.shape
        padded = padded_length(length)

        def arranged(x: jax.Array) -> jax.Array:
            """To [row * side, head, length, head_size], lengths and sizes filled up."""
            x = x.reshape(rows * sides, length, -1, size).swapaxes(1, 2)
            return jnp.pad(x, ((0, 0), (0, 0), (0, padded - length), (0, -size % LANES)))

        def run(choice: int | None, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jax.vmap(_kernel(kv_heads * group, padded, choice, soft_cap, self.interpret))(q, k, v)

        given = tuple(arranged(x) for x in (q, k, v))
        if window is None or isinstance(window, int):
            out = run(window, *given)
        else:
            choices = sorted({padded if size is None else min(size, padded) for size in windows})
            number = jnp.searchsorted(jnp.asarray(choices), jnp.minimum(window, padded))
            out = jax.lax.switch(number, [functools.partial(run, choice) for choice in choices], *given)
        return out[:, :, :length, :size].swapaxes(1, 2).reshape(q.shape)


def padded_length(length: int) -> int:
    """What the kernel makes of a length: a multiple of its block."""
    return -(-length // _block(length)) * _block(length)


def _block(length: int) -> int:
    """The largest block that does not make the side much longer."""
    shortest = -(-length // LANES) * LANES
    return next(block for block in _BLOCKS if -(-length // block) * block <= max(shortest, _WASTE * length))


def _kernel(
    heads: int, length: int, window: int | None, soft_cap: float | None, interpret: bool
) -> kernels.SplashAttentionKernel:
    block = _block(length)
    shape = (length, length)
    before = length if window is None else min(window, length)
    mask = masks.CausalMask(shape) if before == length else masks.LocalMask(shape, (before - 1, 0), 0)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name=remat.ATTENTION,
        interpret=interpret,
    )
