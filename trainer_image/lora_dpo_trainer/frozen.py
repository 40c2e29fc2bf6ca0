"""How the frozen base lies on the devices: split over them, and gathered a layer at a time where it is used."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import haliax as hax
import haliax.nn as hnn
import jax
from haliax import Axis, NamedArray
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_dpo_trainer import linears, remat
from lora_dpo_trainer import mesh as meshes


class FrozenLinear(hnn.Linear):  # type: ignore[misc]
    """A linear layer that is gathered when it is used, and whose output has a name by which it is kept.

    Attributes:
        name: The last part of the layer's name, such as `q_proj`.
        gathered: Where the whole weights are wanted; None leaves them as they lie.
    """

    name: str = eqx.field(static=True, default="")
    gathered: NamedSharding | None = eqx.field(static=True, default=None)

    def __call__(self, inputs: NamedArray, *, key: Any = None) -> NamedArray:
        """As `hnn.Linear`."""
        layer = self if self.gathered is None else gather(self, self.gathered)
        return remat.named(hnn.Linear.__call__(layer, inputs, key=key), self.name)


def install(module: Any, gathered: NamedSharding | None = None) -> Any:
    """Make the linear layers of a Levanter model `FrozenLinear`."""

    def change(path: str, layer: hnn.Linear, Layers: Axis | None) -> FrozenLinear:
        values = {field.name: getattr(layer, field.name) for field in dataclasses.fields(hnn.Linear)}
        return FrozenLinear(**values, name=path.rsplit(".", 1)[-1], gathered=gathered)

    return linears.replace(module, change)


def output_of(layer: hnn.Linear, value: NamedArray) -> NamedArray:
    """Mark what stands for the output of a layer, such as its sum with a low-rank path."""
    return remat.named(value, layer.name) if isinstance(layer, FrozenLinear) else value


def gather(tree: Any, gathered: NamedSharding) -> Any:
    """The same arrays, whole on every device."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, gathered), tree)


def gather_ends(module: Any, gathered: NamedSharding | None) -> Any:
    """Gather what lies before and behind the layers: embedding, last norm, output projection."""
    if gathered is None:
        return module

    def visit(node: Any) -> Any:
        return gather(node, gathered) if eqx.is_array(node) else node

    return jax.tree.map(visit, module, is_leaf=lambda node: isinstance(node, hnn.Stacked))


def shardings(module: Any, mesh: Mesh, Embed: Axis, *, split: bool) -> Any:
    """Where each array of a model belongs, as a pytree of shardings.

    Matrices are split along the hidden axis over the data axis where that is asked for; all else is whole everywhere.
    """

    def of(leaf: Any) -> NamedSharding:
        axes = leaf.axes if isinstance(leaf, NamedArray) else ()
        matrix = sum(axis.name != "layer" for axis in axes) > 1
        names = [meshes.DATA if split and matrix and axis.name == Embed.name else None for axis in axes]
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree.map(of, module, is_leaf=lambda node: isinstance(node, hax.NamedArray))


def put(module: Any, places: Any) -> Any:
    """Move what does not lie where it belongs, over several processes too.

    Args:
        module: A model whose arrays are there.
        places: From `shardings`.
    """

    def moved(leaf: Any, place: NamedSharding) -> Any:
        array = leaf.array if isinstance(leaf, NamedArray) else leaf
        if array.sharding.is_equivalent_to(place, array.ndim):
            return leaf
        there = jax.jit(lambda x: x, out_shardings=place)(array)
        return dataclasses.replace(leaf, array=there) if isinstance(leaf, NamedArray) else there

    return jax.tree.map(moved, module, places, is_leaf=lambda node: isinstance(node, NamedArray))
