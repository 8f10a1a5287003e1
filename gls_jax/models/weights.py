"""From named tensors of any file format to a model: every parameter finds its tensor, every tensor
its parameter.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from gls_jax.models import sharding
from gls_jax.models.config import Config
from gls_jax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint, read one at a time.

    Attributes:
        source: the file or folder, for errors.
        shapes: shape of every tensor by its name in the file.
        names: our parameter path to the name in the file; `{}` stands for the layer's index.
        read: one tensor by its name in the file, as a NumPy array of any float type.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]
    names: Mapping[str, str]
    read: Callable[[str], np.ndarray]


def build(
    config: Config,
    tensors: Tensors,
    *,
    dtype: DTypeLike,
    layers: Sequence[int],
    mesh: Mesh | None = None,
) -> Transformer:
    """Model of the kept `layers` with the checkpoint's weights; nothing is read before all names
    and shapes fit.

    Tensors are read one at a time, and the host holds at most one stacked parameter beside those
    already placed.

    Args:
        config: of the whole checkpoint.
        tensors: where the weights are.
        dtype: of the model's weights.
        layers: indices of the layers to keep, in order.
        mesh: devices to lay the weights out on, by `gls_jax.models.sharding`; None is the default
            device.

    Raises:
        ValueError: tensors that are missing, that no parameter wants, or of another shape than
            `config` asks for; a mesh with other axes than `data` and `model`.
    """
    kept = config.keep(layers)
    mesh = None if mesh is None else sharding.automatic(mesh)
    graph, abstract = _abstract(kept, dtype)
    wanted = {path: leaf.shape for path, leaf in abstract.items()}
    _check(config, tensors, wanted)

    def place(path: str, value: np.ndarray) -> jax.Array:
        if mesh is None:
            return jnp.asarray(value)
        there = sharding.of_parameter(path, kept, mesh)
        return jax.make_array_from_callback(value.shape, there, lambda shard: value[shard])

    def fill(path: str, leaf) -> jax.Array:
        name = tensors.names[path]
        if "{}" not in name:
            return place(path, np.asarray(tensors.read(name), leaf.dtype))
        stacked = np.empty(leaf.shape, leaf.dtype)
        for row, layer in enumerate(layers):
            stacked[row] = tensors.read(
                name.format(layer)
            ).T  # checkpoints store matrices as [out, in]
        return place(path, stacked)

    return _merge(graph, {path: leaf.replace(fill(path, leaf)) for path, leaf in abstract.items()})


def keep_layers(model: Transformer, layers: Sequence[int]) -> Transformer:
    """A drafter from a loaded target: the same model with only some of its layers, each of its own
    kind.

    Embedding, head and final norm are the target's own arrays; the kept layers are copied. No file
    is read.

    Args:
        model: the target.
        layers: indices of the layers to keep, increasing.

    Raises:
        ValueError: `layers` that the model does not have.

    >>> from flax import nnx
    >>> from gls_jax import models
    >>> sizes = dict(
    ...     vocab_size=32, hidden_size=8, intermediate_size=16, num_heads=2, num_kv_heads=1
    ... )
    >>> target = models.Transformer(models.Config(**sizes, num_layers=4), rngs=nnx.Rngs(0))
    >>> drafter = models.keep_layers(target, [0, 3])
    >>> drafter.config.num_layers, drafter.embedding[...] is target.embedding[...]
    (2, True)
    """
    kept = checked_layers(layers, model.config.num_layers)
    rows = np.asarray(kept)
    graph, abstract = _abstract(model.config.keep(kept), model.embedding[...].dtype)
    own = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
    filled = {
        path: own[path][...][rows] if path.startswith("blocks.") else own[path][...]
        for path in abstract
    }
    return _merge(graph, {path: leaf.replace(filled[path]) for path, leaf in abstract.items()})


def checked_layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Indices of the layers to keep out of `count`; None keeps all.

    Raises:
        ValueError: none, or indices that do not increase or that no layer has.
    """
    if layers is None:
        return tuple(range(count))
    kept = tuple(operator.index(layer) for layer in layers)
    if not kept or kept != tuple(sorted(set(kept))) or kept[0] < 0 or kept[-1] >= count:
        raise ValueError(
            f"layers: expected increasing indices from 0 to {count - 1}, at least one, got {list(kept)}"
        )
    return kept


def _abstract(config: Config, dtype: DTypeLike):
    """The model's graph, and its parameters without values by their paths."""
    graph, state = nnx.split(
        nnx.eval_shape(lambda: Transformer(config, dtype=dtype, rngs=nnx.Rngs(0)))
    )
    return graph, {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def _merge(graph, leaves) -> Transformer:
    return nnx.merge(
        graph,
        nnx.from_flat_state([(tuple(path.split(".")), leaf) for path, leaf in leaves.items()]),
    )


def _check(config: Config, tensors: Tensors, wanted: Mapping[str, tuple[int, ...]]) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for path, shape in wanted.items():
        name = tensors.names[path]
        if "{}" in name:
            expected |= {name.format(layer): shape[:0:-1] for layer in range(config.num_layers)}
        else:
            expected[name] = shape
    if missing := [name for name in expected if name not in tensors.shapes]:
        raise ValueError(f"{tensors.source}: expected tensors that are missing: {_some(missing)}")
    if unmapped := [name for name in tensors.shapes if name not in expected]:
        raise ValueError(
            f"{tensors.source}: got tensors that a {config.family} model has no place for: {_some(unmapped)}"
        )
    for name, shape in expected.items():
        if tuple(tensors.shapes[name]) != tuple(shape):
            got = list(tensors.shapes[name])
            raise ValueError(f"{tensors.source}: {name}: expected shape {list(shape)}, got {got}")


def _some(names: Sequence[str], limit: int = 3) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
