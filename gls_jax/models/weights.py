"""From named tensors of any file format to a model.

Every parameter must find its tensor, and every tensor its parameter.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from gls_jax.models import sharding
from gls_jax.models.config import Config
from gls_jax.models.layer_selection import check_kept_layers
from gls_jax.models.transformer import Transformer

__all__ = ["Tensors", "build", "keep_layers"]

_LAYER = re.compile(r"^blocks\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint, read one at a time.

    Attributes:
        source: the file or folder, for errors.
        shapes: shape of every tensor by its name in the file.
        names: our parameter path without the layer's index, such as
            `blocks.attention.query.weight`, to the name in the file with `{}` in its place.
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
    """Model of the kept `layers` with the checkpoint's weights.

    Nothing is read before all names and shapes fit. Tensors are read one at a time, so the host
    holds at most one in addition to those already placed.

    Args:
        config: of the whole checkpoint.
        tensors: where the weights are.
        dtype: of the model's weights.
        layers: indices of the layers to keep, in order.
        mesh: devices to lay the weights out on, by `gls_jax.models.sharding`; None is the default
            device.

    Raises:
        ValueError: tensors that are missing, that no parameter needs, or of another shape than
            `config` says; a mesh with other axes than `data` and `model`.
    """
    kept_config = config.keep(layers)
    mesh = None if mesh is None else sharding.with_auto_axes(mesh)
    _check_tensors(config, tensors, dtype)
    graph, abstract_params = _abstract_model(kept_config, dtype)
    params = {}
    for path, abstract in abstract_params.items():
        name = _tensor_name(tensors, _of_kept_layer(path, layers))
        # No name is bound to the host's array, so that it is freed before the next one is read.
        params[path] = abstract.replace(
            _place(_read(tensors, name, abstract.dtype), path, kept_config, mesh)
        )
    return _merge(graph, params)


def keep_layers(model: Transformer, layers: Sequence[int]) -> Transformer:
    """A drafter from a loaded target: the same model with only some of its layers.

    All arrays are the target's own, and each layer stays local or global. No file is read.

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
    kept_layers = check_kept_layers(layers, model.config.num_layers)
    kept_config = model.config.keep(kept_layers)
    graph, abstract_params = _abstract_model(kept_config, model.embedding[...].dtype)
    target_params = _by_path(nnx.state(model))
    params = {}
    for path, abstract in abstract_params.items():
        value = target_params[_of_kept_layer(path, kept_layers)][...]
        params[path] = abstract.replace(value)
    return _merge(graph, params)


def _of_kept_layer(path: str, layers: Sequence[int]) -> str:
    """The path in the whole model of a parameter of the model with only these layers."""
    return _LAYER.sub(lambda match: f"blocks.{layers[int(match[1])]}.", path)


def _tensor_name(tensors: Tensors, path: str) -> str:
    """The name in the file of a parameter of the whole model."""
    match = _LAYER.match(path)
    name = tensors.names[_LAYER.sub("blocks.", path)]
    return name if match is None else name.format(match[1])


def _read(tensors: Tensors, name: str, dtype: np.dtype) -> np.ndarray:
    return np.asarray(tensors.read(name)).astype(dtype, copy=False)


def _place(value: np.ndarray, path: str, config: Config, mesh: Mesh | None) -> jax.Array:
    """A parameter on its devices; with a mesh, each device gets its own shard only."""
    if mesh is None:
        return jnp.asarray(value)
    layout = sharding.parameter_sharding(path, config, mesh)
    return jax.make_array_from_callback(value.shape, layout, lambda shard: value[shard])


def _abstract_model(config: Config, dtype: DTypeLike):
    """The model's graph, and its parameters by path with shapes in place of values."""
    model = nnx.eval_shape(lambda: Transformer(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    return graph, _by_path(state)


def _by_path(state) -> dict[str, Any]:
    """Parameters by paths such as `blocks.3.attention.query.weight`."""
    return {".".join(map(str, path)): param for path, param in nnx.to_flat_state(state)}


def _merge(graph, params: Mapping[str, Any]) -> Transformer:
    flat_state = [
        (tuple(int(part) if part.isdecimal() else part for part in path.split(".")), param)
        for path, param in params.items()
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat_state))


def _check_tensors(config: Config, tensors: Tensors, dtype: DTypeLike) -> None:
    """Raise unless names and shapes of the file are those of the whole model."""
    # All layers of the checkpoint are checked, also those that are not kept. They have the shapes
    # of the first one. A file with fewer tensors than layers lacks some.
    expected: dict[str, tuple[int, ...]] = {}
    _, of_one_layer = _abstract_model(config.keep([0]), dtype)
    for path, param in of_one_layer.items():
        layers = range(min(config.num_layers, len(tensors.shapes) + 1))
        for layer in layers if _LAYER.match(path) else (0,):
            expected[_tensor_name(tensors, _of_kept_layer(path, [layer]))] = param.shape
    missing = [tensor_name for tensor_name in expected if tensor_name not in tensors.shapes]
    if missing:
        raise ValueError(
            f"{tensors.source}: expected tensors that are missing: {_first_names(missing)}"
        )
    unknown = [tensor_name for tensor_name in tensors.shapes if tensor_name not in expected]
    if unknown:
        raise ValueError(
            f"{tensors.source}: got tensors that a {config.family} model does not have: "
            f"{_first_names(unknown)}"
        )
    for tensor_name, shape in expected.items():
        file_shape = tensors.shapes[tensor_name]
        if file_shape != shape:
            raise ValueError(
                f"{tensors.source}: {tensor_name}: "
                f"expected shape {list(shape)}, got {list(file_shape)}"
            )


def _first_names(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
