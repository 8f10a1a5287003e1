"""A function mapped over many pairs: in bounded memory, on all devices of the process.

:func:`over_pairs` maps any function of a pair, and :func:`acceptance_curves` the exact acceptance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gls_jax import work_shape
from gls_jax.loops import map_in_batches
from gls_jax.typing import LogProbs
from gls_jax.work_shape import WorkShape

if TYPE_CHECKING:
    from gls_jax import schemes

__all__ = ["acceptance_curves", "over_pairs", "pairs_per_step"]

# At least so many steps where the platform chooses the batches. Up to eight devices then have two
# batches each, as is needed below.
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
        batch_size: number of pairs that a device computes at the same time. None is the number
            that suits the platform (:mod:`gls_jax.work_shape`), at most a sixteenth of the pairs.
        memory_budget: bytes for temporary arrays on an accelerator; None is 2 GiB.

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
        batch_size, memory_budget: as in :func:`acceptance_curves`.

    Returns:
        The values of `function`, as NumPy arrays with a leading axis of length `M`.

    Raises:
        ValueError: a memory budget below 2^20 bytes.
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
        # With a separate distribution for each draft, all of them.
        numbers_per_pair = max(math.prod(array.shape[1:]) for array in arrays)
        batch_size = pairs_per_step(num_pairs, numbers_per_pair, shape)
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


def pairs_per_step(num_pairs: int, numbers_per_pair: int, shape: WorkShape) -> int:
    """Pairs that a device computes at the same time, if the caller does not say it.

    Args:
        num_pairs: `M`.
        numbers_per_pair: categories, times distributions of drafts if there are several.
        shape: of the work.
    """
    return min(shape.pairs_at_once(numbers_per_pair), max(1, num_pairs // _LEAST_STEPS))


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
    del shape  # part of the compilation key: `function` reads it while it is traced

    def one_pair(rows):
        return function(*rows, *static)

    def over_shard(arrays):
        return map_in_batches(one_pair, arrays, batch_size)

    # `check_vma` refuses loops in `function` whose first carry is a constant. No check is
    # needed: no value moves between the devices.
    specs = PartitionSpec("pairs")
    sharded_map = jax.shard_map(
        over_shard, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False
    )
    return sharded_map(arrays)
