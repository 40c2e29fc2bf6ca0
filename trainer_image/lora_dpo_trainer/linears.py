"""The linear layers of a Levanter model: where they are in its tree, and what Hugging Face calls them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import haliax.nn as hnn
import jax
import numpy as np
from haliax import Axis
from haliax.state_dict import ModuleWithStateDictSerialization, to_state_dict

HEAD = "lm_head"
"""Path and name of the output projection, whether it has weights of its own or is tied to the embedding."""


@dataclasses.dataclass(frozen=True)
class LinearSpec:
    """A linear layer, or a stack of equal ones.

    Attributes:
        path: Its place in Levanter's tree, such as `transformer.layers.stacked.self_attn.q_proj`.
        names: What Hugging Face calls it, one name a layer: `model.layers.0.self_attn.q_proj`, ….
        In: Input axes.
        Out: Output axes.
        Layers: The stack's axis; None where there is one layer only.
    """

    path: str
    names: tuple[str, ...]
    In: tuple[Axis, ...]
    Out: tuple[Axis, ...]
    Layers: Axis | None

    @property
    def leaf(self) -> str:
        """The last part of its name, such as `q_proj`."""
        return self.names[0].rsplit(".", 1)[-1]


def find(module: Any) -> tuple[LinearSpec, ...]:
    """All linear layers of a model, the output projection last."""
    found: dict[str, tuple[hnn.Linear, Axis | None]] = {}

    def note(path: str, linear: hnn.Linear, Layers: Axis | None) -> hnn.Linear:
        found[path] = (linear, Layers)
        return linear

    replace(module, note)
    names = _names(module, tuple(found))
    specs = [
        LinearSpec(path, names[path], _axes(linear.In), _axes(linear.Out), Layers)
        for path, (linear, Layers) in found.items()
        if path != HEAD and path in names
    ]
    head = LinearSpec(HEAD, (HEAD,), (module.config.Embed,), (module.Vocab,), None)
    return (*specs, head)


def replace(module: Any, change: Callable[[str, Any, Axis | None], Any], kind: type = hnn.Linear) -> Any:
    """Replace every submodule of a kind by `change(path, submodule, stack axis)`."""
    return _replace(module, change, kind, "", None)


def _replace(
    module: Any, change: Callable[[str, Any, Axis | None], Any], kind: type, prefix: str, Layers: Axis | None
) -> Any:
    def is_leaf(node: Any) -> bool:
        return isinstance(node, kind | hnn.Stacked)

    def visit(path: tuple[Any, ...], node: Any) -> Any:
        name = prefix + jax.tree_util.keystr(path, simple=True, separator=".")
        if isinstance(node, kind):
            return change(name, node, Layers)
        if isinstance(node, hnn.Stacked):
            inner = _replace(node.stacked, change, kind, f"{name}.stacked.", node.Block)
            return dataclasses.replace(node, stacked=inner)
        return node

    return jax.tree_util.tree_map_with_path(visit, module, is_leaf=is_leaf)


class _Name(ModuleWithStateDictSerialization):  # type: ignore[misc]
    """Takes a linear layer's place, so that writing a state dict tells its name there."""

    index: int = eqx.field(static=True)
    layers: int | None = eqx.field(static=True)

    def to_state_dict(self, prefix: str | None = None) -> dict[str, Any]:
        shape = () if self.layers is None else (self.layers,)
        return {str(prefix): np.full(shape, self.index)}


def _names(module: Any, paths: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    index = {path: number for number, path in enumerate(paths)}
    skeleton = replace(
        eqx.filter(module, lambda _: False),
        lambda path, _, Layers: _Name(index[path], None if Layers is None else Layers.size),
    )
    names: dict[str, list[str]] = {path: [] for path in paths}
    for name, number in to_state_dict(skeleton).items():
        if number is not None:
            names[paths[int(number)]].append(name)
    return {path: tuple(found) for path, found in names.items() if found}


def _axes(spec: Any) -> tuple[Axis, ...]:
    return (spec,) if isinstance(spec, Axis) else tuple(spec)
