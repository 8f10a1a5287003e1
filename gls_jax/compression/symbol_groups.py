"""Run a program on many symbols, in groups of one padded shape, on all devices of this process.

The result of a symbol does not depend on how many symbols there are, on how the caller cuts them,
or on the number of devices: every group runs the same program on the same shape, and no operation
mixes rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import work_shape
from gls_jax.typing import Index, Progress

__all__ = ["GROUP_SIZE", "in_groups", "over_lanes", "padded"]

# Symbols in one call on a device. Part of the blob format (`block` of the header).
GROUP_SIZE = 4096


def in_groups(
    run: Callable[..., Any], shared: Any, rows: Any, progress: Progress | None = None
) -> Any:
    """``run(shared, group of rows, count)`` over all rows; the results joined, as NumPy arrays.

    Args:
        run: jitted; takes :data:`GROUP_SIZE` rows, of which only the first `count` matter, and
            returns arrays with as many rows.
        shared: passed to every call.
        rows: pytree of arrays with one leading axis `n`.
        progress: called with `(rows done, n)`.
    """
    total = jax.tree.leaves(rows)[0].shape[0]
    # Nothing to run, and so nothing to compile: only the shapes of the results are needed.
    if not total:
        shapes = jax.eval_shape(run, shared, _padded_group(rows, 0, 0), 0)
        return jax.tree.map(lambda x: np.zeros((0, *x.shape[1:]), x.dtype), shapes)
    devices = jax.local_devices()
    shared_copies = [jax.device_put(shared, device) for device in devices]
    running: deque[tuple[int, Any]] = deque()
    results: list[Any] = []

    def collect_oldest() -> None:
        count, result = running.popleft()
        results.append(jax.tree.map(lambda x: np.asarray(x)[:count], result))
        if progress is not None:
            progress(min(len(results) * GROUP_SIZE, total), total)

    for number, start in enumerate(range(0, total, GROUP_SIZE)):
        count = min(GROUP_SIZE, total - start)
        device_index = number % len(devices)
        group = _padded_group(rows, start, count)
        group = jax.device_put(group, devices[device_index])
        result = run(shared_copies[device_index], group, np.int32(count))
        running.append((count, result))
        # Calls return before their results are ready. With one more group than devices queued, a
        # device does not wait for the host.
        if len(running) > len(devices):
            collect_oldest()
    while running:
        collect_oldest()
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def over_lanes(function: Callable[..., Any], rows: Any, count: Index) -> Any:
    """``function`` of the first `count` rows, a few at a time; other results are undefined."""
    shapes = jax.eval_shape(jax.vmap(function), *rows)
    num_lanes = work_shape.current().dense_lanes  # divides GROUP_SIZE

    def step(number, results):
        first = number * num_lanes
        lanes = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, num_lanes), rows)

        def write(whole, part):
            return jax.lax.dynamic_update_slice_in_dim(whole, part, first, 0)

        return jax.tree.map(write, results, jax.vmap(function)(*lanes))

    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.fori_loop(0, (count + num_lanes - 1) // num_lanes, step, zeros)


def _padded_group(rows: Any, start: int, count: int) -> Any:
    """:data:`GROUP_SIZE` rows: `count` rows from `start`, then zeros."""
    return jax.tree.map(lambda x: padded(x[start : start + count], GROUP_SIZE), rows)


def padded(rows: Any, size: int) -> Any:
    """An array with `size` rows: the given ones, then zeros."""
    num_missing = size - rows.shape[0]
    if not num_missing:
        return rows
    if isinstance(rows, jax.Array) and jnp.issubdtype(rows.dtype, jax.dtypes.prng_key):
        # NumPy has no keys: pad their words.
        key_words = np.asarray(jax.random.key_data(rows))
        padded_words = padded(key_words, size)
        return jax.random.wrap_key_data(padded_words, impl=jax.random.key_impl(rows))
    rows = np.asarray(rows)
    zero_rows = np.zeros((num_missing, *rows.shape[1:]), rows.dtype)
    return np.concatenate([rows, zero_rows])
