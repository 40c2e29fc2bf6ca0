"""Devices and how arrays are laid over them.

One data axis: rows of a batch (its groups) are split over it, and the frozen base is split over it too where that is
asked for. The adapter and its optimizer state are small, and kept whole everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"
"""The mesh axis over which groups of a batch are split."""


def make(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, `DATA`, over all devices (default: all that JAX sees)."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (DATA,))


def data_shards(mesh: Mesh) -> int:
    """In how many parts a batch is split."""
    return int(mesh.shape[DATA])


def replicated(mesh: Mesh) -> NamedSharding:
    """The same everywhere."""
    return NamedSharding(mesh, PartitionSpec())


def put_everywhere[T](tree: T, mesh: Mesh) -> T:
    """The same values on every device of the mesh, those of other processes too.

    Every process must hold the same values. They go by way of the host, because an array that is committed to one
    device cannot be spread over devices of several processes.
    """
    everywhere = replicated(mesh)

    def put(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = jax.device_put(np.asarray(jax.random.key_data(leaf)), everywhere)
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(leaf), everywhere)

    return owned(cast(T, jax.tree.map(put, tree)))


def owned[T](tree: T) -> T:
    """Copies of arrays, that a program can take over when they are donated.

    On a CPU an array that was put there may be the memory of a NumPy array still, which no program may write to.
    """
    return cast(T, _copied(tree))


_copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def split_first(mesh: Mesh) -> NamedSharding:
    """Split along the first axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))
