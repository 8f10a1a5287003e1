"""A function mapped over many pairs: in bounded memory, on all devices of the process.

:func:`over_pairs` maps any function of a pair, and :func:`acceptance_curves` the exact acceptance.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gls_jax import work_shape
from gls_jax.typing import LogProbs
from gls_jax.work_shape import WorkShape

if TYPE_CHECKING:
    from gls_jax import schemes

__all__ = ["acceptance_curves", "over_pairs"]

_LEAST_STEPS = 16


def acceptance_curves(
    scheme: schemes.Scheme,
    log_p: LogProbs,
    log_q: LogProbs,
    num_drafts: Sequence[int],
    *,
    batch_size: int | None = None,
    memory_budget: int | None = None,
) -> np.ndarray:
    """Exact acceptance of every pair at every list length.

    Args:
        scheme: one that has an exact acceptance for `N` categories and these list lengths.
        log_p: draft log-probabilities `[M, N]`, or `[M, K, N]` for a scheme with `diverse=True`.
        log_q: target log-probabilities `[M, N]`.
        num_drafts: the list lengths.
        batch_size: number of pairs that a device computes at the same time; None is the number
            that suits the platform (:mod:`gls_jax.work_shape`).
        memory_budget: bytes for temporary arrays on a device; None is that of the platform.

    Returns:
        `f[M, len(num_drafts)]`.

    Raises:
        ValueError: as :meth:`gls_jax.schemes.Scheme.acceptance_curve`.

    >>> import jax
    >>> from gls_jax import schemes
    >>> from gls_jax.exact import batched
    >>> log_p, log_q = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 5, 10)))
    >>> batched.acceptance_curves(schemes.get("gls"), log_p, log_q, (1, 2, 8)).shape
    (5, 3)
    """
    return over_pairs(
        scheme.acceptance_curve,
        log_p,
        log_q,
        static=(tuple(num_drafts),),
        batch_size=batch_size,
        memory_budget=memory_budget,
    )


def over_pairs(
    function: Callable[..., Any],
    *arrays: Any,
    static: tuple[Hashable, ...] = (),
    batch_size: int | None = None,
    memory_budget: int | None = None,
) -> Any:
    """Apply a function of one pair to each of `M` pairs.

    Every device computes its shard of the pairs, `batch_size` at a time. The values do not
    depend on the number of devices.

    Args:
        function: called as ``function(*rows, *static)``, with one row of each array. It is compiled
            once for each function object, shape and `static`: pass the same object every time.
        *arrays: arrays with a leading axis of length `M`.
        static: static arguments (hashable).
        batch_size, memory_budget: as in :func:`acceptance_curves`. The platform's number of pairs
            is chosen for arrays whose last axis is that of the categories.

    Returns:
        The values of `function`, as NumPy arrays with a leading axis of length `M`.
    """
    with work_shape.using(memory_budget=memory_budget) as shape:
        return _over_pairs(function, arrays, static, batch_size, shape)


def _over_pairs(
    function: Callable[..., Any],
    arrays: tuple[Any, ...],
    static: tuple[Hashable, ...],
    batch_size: int | None,
    shape: WorkShape,
) -> Any:
    num_pairs = len(arrays[0])
    if batch_size is None:
        most_categories = max((array.shape[-1] for array in arrays if array.ndim > 1), default=1)
        batch_size = pairs_per_step(num_pairs, most_categories, shape)
    batch_size = min(batch_size, num_pairs)
    # XLA unrolls a loop of one iteration, and may then round sums differently. At least two batches
    # per device, all of one size, keep the values the same on any number of devices.
    devices = jax.local_devices()
    num_devices = min(len(devices), max(1, num_pairs // (2 * batch_size)))
    # Pad with copies of the last pair.
    num_missing = -num_pairs % (num_devices * batch_size)
    indices = np.minimum(np.arange(num_pairs + num_missing), num_pairs - 1)
    mesh = Mesh(devices[:num_devices], "pairs")
    padded = [array[indices] for array in arrays]
    shards = jax.device_put(padded, NamedSharding(mesh, PartitionSpec("pairs")))
    with jax.set_mesh(mesh):  # replaces a mesh that the caller may have set
        values = _over_shards(
            shards,
            function=function,
            static=static,
            batch_size=batch_size,
            mesh=mesh,
            shape=shape,
        )
    return jax.tree.map(lambda value: np.asarray(value)[:num_pairs], values)


def pairs_per_step(num_pairs: int, num_categories: int, shape: WorkShape) -> int:
    """Pairs that a device computes at the same time, if the caller does not say it."""
    # Not fewer steps than these, so that the batches are the same on up to eight devices.
    return min(shape.pairs_at_once(num_categories), max(1, num_pairs // _LEAST_STEPS))


@partial(jax.jit, static_argnames=("function", "static", "batch_size", "mesh", "shape"))
def _over_shards(
    arrays,
    *,
    function: Callable,
    static: tuple,
    batch_size: int,
    mesh: Mesh,
    shape: WorkShape,
):
    del shape  # of the work in `function`: another one is another program

    def one_pair(rows):
        return function(*rows, *static)

    def over_shard(arrays):
        # A vmap over a batch of one is slower than no vmap.
        return jax.lax.map(one_pair, arrays, batch_size=batch_size if batch_size > 1 else None)

    # `check_vma` refuses loops in `function` whose first carry is a constant. No check is
    # needed: no value moves between the devices.
    specs = PartitionSpec("pairs")
    sharded_map = jax.shard_map(
        over_shard, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False
    )
    return sharded_map(arrays)
