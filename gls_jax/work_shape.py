"""How much work runs at the same time: the one place that knows what a platform likes.

The same work has two shapes. A core of a CPU wants arrays that stay in its cache, and many short
steps cost it nothing. An accelerator wants few steps, because each is the launch of a kernel, about
10 microseconds on a GPU; and it wants every step to be wide, because it has 10^5 threads to fill.
So sizes of blocks are taken from here, and where the platforms need different algorithms,
:func:`by_platform` chooses when a function is lowered.

Results do not depend on the shape: accepted trials, indices and tokens are the same integers, and
exact values differ by rounding, at most 2e-6 in float32.

A shape is read when a function is traced. It is that of JAX's default backend, unless
:func:`using` sets another one.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax

from gls_jax import checks

__all__ = ["CPU", "WorkShape", "accelerator", "by_platform", "current", "for_platform", "using"]

Result = TypeVar("Result")

_DEFAULT_BUDGET = 2**31
_LEAST_BUDGET = 2**20
_FLOAT_BYTES = 4
# An exact acceptance holds about so many arrays at the same time, and no quadrature has more nodes.
_LIVE_ARRAYS = 8
_MOST_NODES = 128


@dataclasses.dataclass(frozen=True)
class WorkShape:
    """Sizes of blocks of work. Hashable: programs that depend on it take it as a static argument.

    A *number* is a float32 or an integer of 32 bits.

    Attributes:
        is_wide: few wide steps, where an algorithm has such a form.
        memory_budget: bytes for the temporary arrays of one program.
        trial_numbers: numbers that a chunk of trials holds in one array.
        most_trials: most trials of a chunk, over all of its pairs.
        study_blocks: blocks of 32 pairs, at most, that a study computes in one call.
        noise_per_report: exponentials that a device draws between two progress reports.
        categories_per_step: categories that a race looks at in one step of its loop.
        row_sum: numbers that one row of a matrix product adds up, in cumulative sums.
        problem_numbers: numbers in one array of an exact acceptance, for one pair; at least one
            node of the quadrature is computed in a step.
        batch_numbers: the same for a batch of positions or chains, such as those of a loss.
        list_tokens: tokens that the exact acceptance of `gumbel_topk` adds to a list in one step.
        list_indices: indices in ratio order at which it does so in one step, at least.
        kernel_positions: positions whose emitted-token kernels are computed in one step.
        most_darts: most darts thrown in one step, at most 2^16.
        visits: visits of candidates in one step of an ordered search, over all lanes.
        dense_lanes: symbols of a dense search that are computed at the same time.
        prefill_tokens: prompt tokens that a model reads in one call.
    """

    is_wide: bool
    memory_budget: int
    trial_numbers: int
    most_trials: int
    study_blocks: int
    noise_per_report: int
    categories_per_step: int
    row_sum: int
    problem_numbers: int
    batch_numbers: int
    list_tokens: int
    list_indices: int
    kernel_positions: int
    most_darts: int
    visits: int
    dense_lanes: int
    prefill_tokens: int

    def nodes_at_once(self, num_categories: int) -> int:
        """Nodes of a quadrature over `N` categories in one step of an exact acceptance."""
        return max(1, self.problem_numbers // num_categories)

    def indices_at_once(self, numbers_per_index: int) -> int:
        """Indices in ratio order whose distributions of counts are computed in one step."""
        return max(self.list_indices, self.problem_numbers // numbers_per_index)

    def pairs_at_once(self, num_categories: int) -> int:
        """Pairs of distributions whose exact acceptances are computed in one step."""
        if not self.is_wide:
            return 1
        numbers = min(_MOST_NODES * num_categories, max(num_categories, self.problem_numbers))
        return max(1, self.memory_budget // (_LIVE_ARRAYS * _FLOAT_BYTES * numbers))

    def positions_at_once(self, num_categories: int) -> int:
        """Positions whose losses and gradients are computed in one step."""
        if not self.is_wide:
            return max(1, self.batch_numbers // num_categories)
        # A gradient holds twice as many arrays.
        return max(1, self.pairs_at_once(num_categories) // 2)


CPU = WorkShape(
    is_wide=False,
    memory_budget=_DEFAULT_BUDGET,
    trial_numbers=2**15,  # fit the cache of a core
    most_trials=2**12,
    study_blocks=1,
    noise_per_report=2**28,  # about a second on two cores
    categories_per_step=2,
    row_sum=32,
    problem_numbers=1,
    batch_numbers=2**18,
    list_tokens=2,
    list_indices=27,  # divides 1,026, the number of indices at a vocabulary
    kernel_positions=64,
    most_darts=2**12,
    visits=2**14,
    dense_lanes=8,
    prefill_tokens=256,
)
"""The shape for the cores of a CPU, as measured with XLA:CPU."""


def accelerator(memory_budget: int = _DEFAULT_BUDGET) -> WorkShape:
    """The shape for a GPU or a TPU.

    Args:
        memory_budget: bytes for the temporary arrays of one program, at least 2^20.

    >>> from gls_jax import work_shape
    >>> work_shape.accelerator(2**30).trial_numbers
    67108864
    """
    budget = checks.count(memory_budget, "memory_budget")
    if budget < _LEAST_BUDGET:
        raise ValueError(f"memory_budget: expected at least 2^20 bytes, got {budget}")
    # The programs hold a few arrays of such a size at the same time.
    numbers = budget // (4 * _FLOAT_BYTES)
    return WorkShape(
        is_wide=True,
        memory_budget=budget,
        trial_numbers=numbers,
        most_trials=2**20,
        study_blocks=2**6,
        noise_per_report=2**34,
        categories_per_step=1,
        row_sum=128,  # the width of a TPU's matrix unit
        # Enough to fill the threads of a GPU. More pairs fill the memory, not more nodes, so that
        # a `vmap` over pairs stays cheap.
        problem_numbers=min(2**22, numbers),
        batch_numbers=min(2**24, numbers),
        list_tokens=16,
        list_indices=1,
        kernel_positions=2**12,
        most_darts=2**16,
        visits=2**18,
        dense_lanes=2**9,
        prefill_tokens=2**11,
    )


def for_platform(platform: str, memory_budget: int | None = None) -> WorkShape:
    """The shape for a platform by its name in JAX: `cpu`, or `gpu`, `cuda`, `rocm`, `tpu`.

    Args:
        platform: its name; every other one than `cpu` is an accelerator.
        memory_budget: bytes for the temporary arrays of one program; None is 2 GiB.
    """
    budget = _DEFAULT_BUDGET if memory_budget is None else memory_budget
    wide = accelerator(budget)
    if platform != "cpu":
        return wide
    return dataclasses.replace(CPU, memory_budget=wide.memory_budget)


class _Choice(NamedTuple):
    """What :func:`using` sets: a shape, and whether it also chooses the algorithms."""

    shape: WorkShape
    has_platform: bool


_choice: contextvars.ContextVar[_Choice | None] = contextvars.ContextVar("_choice", default=None)


def current() -> WorkShape:
    """The shape of work now: that of :func:`using`, or that of JAX's default backend."""
    choice = _choice.get()
    return for_platform(jax.default_backend()) if choice is None else choice.shape


@contextlib.contextmanager
def using(platform: str | None = None, memory_budget: int | None = None) -> Iterator[WorkShape]:
    """A context in which functions are traced with another shape of work.

    A program that you compiled with `jax.jit` keeps the shape that it was traced with.

    Args:
        platform: its name in JAX; None keeps the platform.
        memory_budget: bytes for the temporary arrays of one program; None keeps the budget.

    >>> import jax
    >>> from gls_jax import races, work_shape
    >>> log_p = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (1000,)))
    >>> race = lambda: races.first_arrivals(jax.random.key(1), 4, log_p)[0][1].tolist()
    >>> with work_shape.using("cuda"):
    ...     on_accelerators = race()
    >>> on_accelerators == race()
    True
    """
    earlier = _choice.get()
    shape = current()
    budget = shape.memory_budget if memory_budget is None else memory_budget
    if platform is None:
        has_platform = earlier is not None and earlier.has_platform
        shape = for_platform("gpu" if shape.is_wide else "cpu", budget)
    else:
        has_platform = True
        shape = for_platform(platform, budget)
    token = _choice.set(_Choice(shape, has_platform))
    try:
        yield shape
    finally:
        _choice.reset(token)


def by_platform(
    narrow: Callable[..., Result], wide: Callable[..., Result], *operands: object
) -> Result:
    """`narrow(*operands)` on a CPU, `wide(*operands)` elsewhere; decided when it is lowered.

    Both return the same. Inside ``using(platform)`` that platform decides.
    """
    choice = _choice.get()
    if choice is not None and choice.has_platform:
        return (wide if choice.shape.is_wide else narrow)(*operands)
    return jax.lax.platform_dependent(*operands, cpu=narrow, default=wide)
