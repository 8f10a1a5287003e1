"""Many symbols in groups of one padded shape, dealt out to the devices of this process.

What a symbol gives does not depend on how many there are, on how the caller cuts them, or on the number of devices:
every group runs the same program on the same shape, and rows never meet in a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["GROUP", "LANES", "Progress", "in_groups", "over_lanes"]

GROUP = 4096  # symbols of one call on a device; part of the format
LANES = 8  # symbols that a dense search holds in the cache at a time; divides GROUP

Progress = Callable[[int, int], None]


def in_groups(run: Callable, shared: Any, rows: Any, progress: Progress | None = None) -> Any:
    """``run(shared, group of rows, count)`` for all rows, results put together as NumPy arrays.

    Args:
        run: jitted; takes :data:`GROUP` rows of which the first `count` are meant, gives arrays of as many rows.
        shared: what every call gets.
        rows: pytree of arrays with one leading axis `n`.
        progress: called with `(rows done, n)`.

    Raises:
        ValueError: rows of different lengths.
    """
    leaves = jax.tree.leaves(rows)
    total = leaves[0].shape[0]
    if any(leaf.shape[0] != total for leaf in leaves):
        raise ValueError(f"rows: expected one a symbol ({total}), got {sorted({leaf.shape[0] for leaf in leaves})}")
    devices, results = jax.local_devices(), []
    common = [jax.device_put(shared, device) for device in devices]
    for number, first in enumerate(range(0, max(total, 1), GROUP)):
        count, place = min(GROUP, total - first), number % len(devices)
        group = jax.tree.map(lambda x, at=first, size=count: _padded(x[at : at + size]), rows)
        group = jax.device_put(group, devices[place])
        results.append((count, run(common[place], group, np.int32(count))))
        if len(results) > len(devices):  # a device has one group in hand and one in wait
            _fetch(results, len(results) - len(devices) - 1)
            if progress is not None:
                progress(first - (len(devices) - 1) * GROUP, total)
    for number in range(len(results)):
        _fetch(results, number)
    if progress is not None:
        progress(total, total)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *(result for _, result in results))


def over_lanes(function: Callable, rows: Any, count) -> Any:
    """``function`` of the first `count` rows, a few at a time; rows behind them give whatever."""
    shapes = jax.eval_shape(jax.vmap(function), *rows)

    def step(number, found):
        first = number * LANES
        lanes = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, LANES), rows)
        put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, first, 0)  # noqa: E731
        return jax.tree.map(put, found, jax.vmap(function)(*lanes))

    found = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.fori_loop(0, (count + LANES - 1) // LANES, step, found)


def _padded(rows):
    missing = GROUP - rows.shape[0]
    if not missing:
        return rows
    if isinstance(rows, jax.Array) and jnp.issubdtype(rows.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(rows))
        return jax.random.wrap_key_data(_padded(data), impl=jax.random.key_impl(rows))
    rows = np.asarray(rows)
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])


def _fetch(results: list, number: int) -> None:
    count, result = results[number]
    if isinstance(jax.tree.leaves(result)[0], jax.Array):
        results[number] = (count, jax.tree.map(lambda x: np.asarray(x)[:count], result))
