"""Many symbols in groups of one padded shape, dealt out to the devices of this process.

What a symbol gives does not depend on how many there are, on how the caller cuts them, or on the
number of devices: every group runs the same program on the same shape, and rows never meet in a
sum.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax.typing import Index

__all__ = ["GROUP", "LANES", "Progress", "in_groups", "over_lanes"]

GROUP = 4096  # symbols of one call on a device; part of the format
LANES = 8  # symbols that a dense search holds in the cache at a time; divides GROUP

Progress = Callable[[int, int], None]


def in_groups(
    run: Callable[..., Any], shared: Any, rows: Any, progress: Progress | None = None
) -> Any:
    """``run(shared, group of rows, count)`` for all rows, results put together as NumPy arrays.

    Args:
        run: jitted; takes :data:`GROUP` rows of which the first `count` are meant, gives arrays of
            as many rows.
        shared: what every call gets.
        rows: pytree of arrays with one leading axis `n`.
        progress: called with `(rows done, n)`.
    """
    total = jax.tree.leaves(rows)[0].shape[0]
    if not total:
        group = jax.tree.map(_padded, rows)
        return jax.tree.map(
            lambda x: np.zeros((0, *x.shape[1:]), x.dtype), jax.eval_shape(run, shared, group, 0)
        )
    devices, results = jax.local_devices(), []
    working: deque[tuple[int, Any]] = deque()
    common = [jax.device_put(shared, device) for device in devices]
    for number, first in enumerate(range(0, total, GROUP)):
        count, place = min(GROUP, total - first), number % len(devices)
        group = jax.tree.map(lambda x, at=first, size=count: _padded(x[at : at + size]), rows)
        group = jax.device_put(group, devices[place])
        working.append((count, run(common[place], group, np.int32(count))))
        # A device has one group in hand and one in wait.
        while len(working) > len(devices) or (working and first + count == total):
            done, result = working.popleft()
            results.append(jax.tree.map(lambda x, n=done: np.asarray(x)[:n], result))
            if progress is not None:
                progress(min(len(results) * GROUP, total), total)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def over_lanes(function: Callable[..., Any], rows: Any, count: Index) -> Any:
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
