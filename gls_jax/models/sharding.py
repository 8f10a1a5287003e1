"""Placement of weights, caches and requests on a mesh with axes `data` and `model`.

Requests are split over `data`; heads, feed-forward units and the vocabulary over `model`. What does
not divide is replicated: two key-value heads on four devices, nine heads on two. The only sums that
are split between devices are those over heads and over feed-forward units, so results differ
between meshes by rounding only.

The weights carry the mesh: give it to `load`, and do not set it around a call (`jax.set_mesh`).
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gls_jax.models.config import Config

__all__ = ["constrain", "constrain_cache", "mesh_of", "parameter_sharding", "with_auto_axes"]

_AXES = ("data", "model")

# How a parameter's dimensions are split. Matrices are [out, in]: those that read the residual
# stream are split by outputs, and those that write it by inputs, so that nothing is exchanged in
# between. Parameters that are not named, the norms, are replicated.
_BY_OUTPUT = P("model", None)
_BY_INPUT = P(None, "model")
_SPECS = {
    "embedding": P("model", None),
    "head": P("model", None),
    "query.weight": _BY_OUTPUT,
    "key.weight": _BY_OUTPUT,
    "value.weight": _BY_OUTPUT,
    "gate.weight": _BY_OUTPUT,
    "up.weight": _BY_OUTPUT,
    "output.weight": _BY_INPUT,
    "down.weight": _BY_INPUT,
    "query.bias": P("model"),
    "key.bias": P("model"),
    "value.bias": P("model"),
}
# What is split there, as a field of `Config`. Heads are not cut: half a head on each device would
# be correct and slow.
_PARTS = {
    "embedding": "vocab_size",
    "head": "vocab_size",
    "query": "num_heads",
    "output": "num_heads",
    "key": "num_kv_heads",
    "value": "num_kv_heads",
    "gate": "intermediate_size",
    "up": "intermediate_size",
    "down": "intermediate_size",
}
_BY_HEAD = P(None, "data", "model", None, None)
_CACHE_SPECS = {
    "keys": _BY_HEAD,
    "values": _BY_HEAD,
    "positions": P(None, "data", None),
    "length": P("data"),
}


def with_auto_axes(mesh: Mesh) -> Mesh:
    """The same mesh with axes of type `Auto`: the compiler works out the layout between operations.

    The axes of `jax.make_mesh` are `Explicit`.

    Raises:
        ValueError: a mesh without the axes `data` and `model`, or with others.

    >>> import jax
    >>> from gls_jax.models import sharding
    >>> sharding.with_auto_axes(jax.make_mesh((1, 1), ("data", "model"))).axis_types
    (Auto, Auto)
    """
    if sorted(mesh.axis_names) != sorted(_AXES):
        axis_names = ", ".join(map(str, mesh.axis_names))
        raise ValueError(f"mesh: expected axes {' and '.join(_AXES)}, got {axis_names}")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(_AXES))


def parameter_sharding(path: str, config: Config, mesh: Mesh) -> NamedSharding:
    """Layout of the parameter at a path; replicated if its parts do not divide over the devices.

    >>> import jax
    >>> from gls_jax.models import Config, sharding
    >>> config = Config(
    ...     vocab_size=32,
    ...     hidden_size=8,
    ...     intermediate_size=16,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     num_kv_heads=1,
    ... )
    >>> mesh = sharding.with_auto_axes(jax.make_mesh((1, 1), ("data", "model")))
    >>> sharding.parameter_sharding("blocks.0.feed_forward.down.weight", config, mesh).spec
    P(None, 'model')
    """
    # The last two names tell: `down.weight` of `blocks.0.feed_forward.down.weight`.
    short_path = ".".join(path.split(".")[-2:])
    layer_name = short_path.split(".")[0]
    num_parts = getattr(config, _PARTS[layer_name]) if layer_name in _PARTS else 1
    divides = num_parts % mesh.shape["model"] == 0
    return NamedSharding(mesh, _SPECS.get(short_path, P()) if divides else P())


def constrain(x: jax.Array, spec: P, mesh: Mesh | None) -> jax.Array:
    """`x` laid out by `spec`, under `jit` or not; dimensions that do not divide are replicated."""
    if mesh is None:
        return x
    fitting_axes = [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(spec, x.shape, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*fitting_axes)))


def constrain_cache(cache: Any, mesh: Mesh | None) -> Any:
    """A `Cache` with rows over `data` and key-value heads over `model`."""
    laid_out = {
        name: constrain(getattr(cache, name), spec, mesh) for name, spec in _CACHE_SPECS.items()
    }
    return cache._replace(**laid_out)


def mesh_of(x: jax.Array) -> Mesh | None:
    """The mesh that an array lies on, None for an array on one device."""
    mesh = x.sharding.mesh if isinstance(x.sharding, NamedSharding) else None
    # It may also be an abstract mesh, which has no devices.
    return mesh if isinstance(mesh, Mesh) else None
