"""From named tensors of any file format to a model: every parameter finds its tensor, every tensor its parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

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


def build(config: Config, tensors: Tensors, *, dtype: DTypeLike, layers: Sequence[int]) -> Transformer:
    """Model of the kept `layers` with the checkpoint's weights; nothing is read before all names and shapes fit.

    Args:
        config: of the whole checkpoint.
        tensors: where the weights are.
        dtype: of the model's weights.
        layers: indices of the layers to keep, in order.

    Raises:
        ValueError: tensors that are missing, that no parameter wants, or of another shape than `config` asks for.
    """
    kept = config.keep(layers)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(kept, dtype=dtype, rngs=nnx.Rngs(0))))
    wanted = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(abstract)}
    _check(config, tensors, wanted)

    def fill(path, leaf):
        name = tensors.names[".".join(map(str, path))]
        if "{}" not in name:
            return leaf.replace(jnp.asarray(np.asarray(tensors.read(name), leaf.dtype)))
        stacked = np.empty(leaf.shape, leaf.dtype)
        for row, layer in enumerate(layers):
            stacked[row] = tensors.read(name.format(layer)).T  # checkpoints store matrices as [out, in]
        return leaf.replace(jnp.asarray(stacked))

    filled = [(path, fill(path, leaf)) for path, leaf in nnx.to_flat_state(abstract)]
    return nnx.merge(graph, nnx.from_flat_state(filled))


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
