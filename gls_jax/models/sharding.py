"""Where weights, caches and requests lie on a mesh with axes `data` and `model`.

Requests are split over `data`; heads, feed-forward units and the vocabulary over `model`. What does
not divide is replicated: two key-value heads on four devices, nine heads on two. No sum that a
single device would do in one piece is split but those over heads and feed-forward units, so results
differ between meshes by rounding only. The weights carry the mesh: it is given to `load` and is not
to be set around a call (`jax.set_mesh`).
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gls_jax.models.config import Config

AXES = ("data", "model")

# Parameter path to the axes of its dimensions; `*` stands for blocks.attention or
# blocks.feed_forward. The rest, the norms, is replicated. Matrices are [L, in, out]: first maps are
# split by outputs, the ones that follow by inputs.
SPECS = {
    "embedding": P("model", None),
    "head": P("model", None),
    **{
        f"*.{name}.weight": P(None, None, "model")
        for name in ("query", "key", "value", "gate", "up")
    },
    **{f"*.{name}.bias": P(None, "model") for name in ("query", "key", "value")},
    **{f"*.{name}.weight": P(None, "model", None) for name in ("output", "down")},
}
CACHE_SPECS = {
    "keys": P(None, "data", None, "model", None),
    "positions": P(None, "data", None),
    "length": P("data"),
}
CACHE_SPECS["values"] = CACHE_SPECS["keys"]


def automatic(mesh: Mesh) -> Mesh:
    """The same mesh with axes whose use the compiler works out: those of `jax.make_mesh` are
    explicit.

    Raises:
        ValueError: a mesh without the axes `data` and `model`, or with others.

    >>> import jax
    >>> from gls_jax.models import sharding
    >>> sharding.automatic(jax.make_mesh((1, 1), ("data", "model"))).axis_types
    (Auto, Auto)
    """
    if sorted(mesh.axis_names) != sorted(AXES):
        raise ValueError(
            f"mesh: expected axes {' and '.join(AXES)}, got {', '.join(map(str, mesh.axis_names))}"
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(AXES))


def of_parameter(path: str, config: Config, mesh: Mesh) -> NamedSharding:
    """Where a parameter lies: by its path, replicated if what it is split into does not divide over
    the devices.

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
    >>> mesh = sharding.automatic(jax.make_mesh((1, 1), ("data", "model")))
    >>> sharding.of_parameter("blocks.feed_forward.down.weight", config, mesh).spec
    P(None, 'model', None)
    """
    parts = path.split(".")
    name = parts[0] if len(parts) == 1 else parts[-2]
    pieces = {"embedding": config.vocab_size, "head": config.vocab_size}
    pieces |= {"query": config.num_heads, "output": config.num_heads}
    pieces |= {"key": config.num_kv_heads, "value": config.num_kv_heads}
    pieces |= dict.fromkeys(("gate", "up", "down"), config.intermediate_size)
    spec = SPECS.get(path if len(parts) == 1 else f"*.{'.'.join(parts[-2:])}", P())
    # By heads, not by rows: half a head on each device would be correct and slow.
    return NamedSharding(mesh, spec if pieces.get(name, 0) % mesh.shape["model"] == 0 else P())


def constrain(x: jax.Array, spec: P, mesh: Mesh | None) -> jax.Array:
    """`x` laid out by `spec`, inside or outside jit; dimensions that do not divide are replicated."""
    if mesh is None:
        return x
    fits = [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(spec, x.shape, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*fits)))


def constrain_cache(cache: Any, mesh: Mesh | None) -> Any:
    """A `Cache` with rows over `data` and key-value heads over `model`."""
    return cache._replace(
        **{name: constrain(getattr(cache, name), spec, mesh) for name, spec in CACHE_SPECS.items()}
    )


def mesh_of(x: jax.Array) -> Mesh | None:
    """The mesh that an array lies on, None for an array on one device."""
    mesh = x.sharding.mesh if isinstance(x.sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else None
