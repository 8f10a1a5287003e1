"""Sizes of blocks of work: the one place that knows what a platform likes.

The same work has two shapes. A core of a CPU wants arrays that stay in its cache, and many short
steps cost it nothing. An accelerator wants few steps, because each launches kernels, which takes
about 10 microseconds on a GPU; and it wants every step to be wide, because it has 10^5 threads to
fill. So sizes that depend on the platform are taken from here, and where the platforms need
different algorithms, :func:`by_platform` chooses when a function is lowered.

Results do not depend on the shape: accepted trials, indices and tokens are the same integers, and
exact values differ by rounding, at most 2e-6 in float32.

A shape is read when a function is traced. It is that of JAX's default backend (also under
`jax.default_device`), unless :func:`using` sets another one. A new thread begins without what
:func:`using` has set. Functions of this library that are compiled and read the shape take it as a
static argument, so that it is part of the compilation key. Models read it as well; a compiled model
keeps the form of its products that it was traced with, which changes only its speed.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax

from gls_jax import checks

__all__ = [
    "CPU",
    "WorkShape",
    "accelerator",
    "by_platform",
    "compiled",
    "current",
    "for_platform",
    "using",
]

Result = TypeVar("Result")

_PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")
_DEFAULT_BUDGET = 2**31
_LEAST_BUDGET = 2**20
# Sizes are those of float32. With x64 the arrays take twice the memory.
_FLOAT_BYTES = 4
# Arrays that trials hold at the same time, and an exact acceptance.
_TRIAL_ARRAYS = 4
_EXACT_ARRAYS = 8
# Numbers that an exact acceptance holds for each category in one array, at most, for K up to 16:
# some 70 nodes of a quadrature; for `gumbel_topk` also its counts, at up to 1,026 categories.
_NUMBERS_PER_CATEGORY = 1024


@dataclasses.dataclass(frozen=True)
class WorkShape:
    """Sizes of blocks of work.

    A *number* is a float32 or an integer of 32 bits.

    Attributes:
        is_wide: few wide steps, where an algorithm has such a form.
        memory_budget: bytes for the temporary arrays of one program of trials, exact acceptances,
            losses or kernels, with lists of up to 16 drafts. On a CPU it has no effect: blocks that
            fit a cache are small. The searches of a codec take up to 300 MB, whatever it is.
        trial_numbers: numbers that a chunk of trials holds in one array.
        most_trials: most trials of a chunk, over all of its pairs.
        study_blocks: most blocks (of up to 32 pairs each) that a study computes in one call.
        noise_per_report: exponentials that a device draws between two progress reports.
        categories_per_step: categories that a race looks at in one step, where it is a loop.
        row_sum: numbers that one row of a matrix product adds up, in cumulative sums.
        problem_numbers: numbers in one array of an exact acceptance, for one pair; 1 is one node of
            the quadrature at a time.
        batch_numbers: numbers in one array of a batch: of chains of rejections, of tokens of
            `weighted_importance` and, on a CPU, of positions of a loss.
        list_tokens: tokens by which a distribution of counts grows in one step, in the exact
            acceptance of `gumbel_topk`.
        list_indices: fewest indices in ratio order at which that happens in one step.
        kernel_positions: most positions whose emitted-token kernels are computed in one step.
        most_darts: most darts thrown in one step, at most 2^16.
        visits: candidates that an ordered search visits in one step, over all lanes.
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
        numbers = _NUMBERS_PER_CATEGORY * num_categories
        numbers = min(numbers, max(num_categories, self.problem_numbers))
        return max(1, self.memory_budget // (_EXACT_ARRAYS * _FLOAT_BYTES * numbers))

    def rows_at_once(self, num_categories: int) -> int:
        """Rows of `N` numbers that an exact acceptance computes in one step: chains, tokens."""
        if not self.is_wide:
            return max(1, self.batch_numbers // num_categories)
        # As many as `pairs_at_once` allows for.
        return max(1, min(_NUMBERS_PER_CATEGORY, self.problem_numbers // num_categories))

    def kernel_positions_at_once(self, num_categories: int) -> int:
        """Positions whose emitted-token kernels are computed in one step."""
        if not self.is_wide:
            return self.kernel_positions
        # That of `poisson` holds three times as many numbers as an exact acceptance.
        position_bytes = 3 * _NUMBERS_PER_CATEGORY * _FLOAT_BYTES * num_categories
        return max(1, min(self.kernel_positions, self.memory_budget // position_bytes))

    def positions_at_once(self, num_categories: int) -> int:
        """Positions whose losses and gradients are computed in one step."""
        if not self.is_wide:
            return max(1, self.batch_numbers // num_categories)
        # A gradient holds up to four times as many arrays.
        return max(1, self.pairs_at_once(num_categories) // 4)


CPU = WorkShape(
    is_wide=False,
    memory_budget=_DEFAULT_BUDGET,
    trial_numbers=2**15,  # fit the cache of a core
    most_trials=2**12,
    study_blocks=1,
    noise_per_report=2**28,  # about a second on two cores
    categories_per_step=2,
    row_sum=32,
    problem_numbers=1,  # one node
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

    Raises:
        ValueError: a smaller budget.

    >>> from gls_jax import work_shape
    >>> work_shape.accelerator(2**30).trial_numbers
    67108864
    """
    budget = checks.count(memory_budget, "memory_budget")
    if budget < _LEAST_BUDGET:
        raise ValueError(f"memory_budget: expected at least 2^20 bytes, got {budget}")
    numbers = budget // (_TRIAL_ARRAYS * _FLOAT_BYTES)
    return WorkShape(
        is_wide=True,
        memory_budget=budget,
        trial_numbers=numbers,
        most_trials=2**20,
        study_blocks=2**6,
        noise_per_report=2**34,  # a fraction of a second by the count; not timed
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
    """The shape for a platform.

    Args:
        platform: its name in JAX, one of `cpu`, `gpu`, `cuda`, `rocm` and `tpu`.
        memory_budget: bytes for the temporary arrays of one program; None is 2 GiB. It has no
            effect for `cpu`.

    Raises:
        ValueError: another name, or a budget below 2^20.
    """
    checks.one_of(platform, _PLATFORMS, "platform")
    wide = accelerator(_DEFAULT_BUDGET if memory_budget is None else memory_budget)
    return CPU if platform == "cpu" else wide


class _Choice(NamedTuple):
    """What :func:`using` sets: a shape, and whether it also chooses the algorithms."""

    shape: WorkShape
    has_platform: bool


_choice: contextvars.ContextVar[_Choice | None] = contextvars.ContextVar("_choice", default=None)


def current() -> WorkShape:
    """The shape of work now: that of :func:`using`, or that of JAX's default backend."""
    choice = _choice.get()
    if choice is not None:
        return choice.shape
    # Also a backend of a name that is not known here is taken for an accelerator.
    return CPU if jax.default_backend() == "cpu" else accelerator()


@contextlib.contextmanager
def using(platform: str | None = None, memory_budget: int | None = None) -> Iterator[WorkShape]:
    """A context in which functions are traced with another shape of work.

    A program that you compiled with `jax.jit` keeps the shape that it was traced with, and its
    derivatives keep the one in which they were first taken.

    Args:
        platform: its name in JAX; None keeps the platform.
        memory_budget: bytes for the temporary arrays of one program; None keeps the budget. It has
            no effect for the shape of a CPU.

    Raises:
        ValueError: as :func:`for_platform`.

    >>> import jax
    >>> from gls_jax import races, work_shape
    >>> log_p = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (1000,)))
    >>> def winners():
    ...     ((_, categories),) = races.first_arrivals(jax.random.key(1), 4, log_p)
    ...     return categories.tolist()
    >>> with work_shape.using("cuda"):
    ...     on_accelerators = winners()
    >>> on_accelerators == winners()
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

    Inside ``using(platform)`` that platform decides.

    Args:
        narrow, wide: functions of arrays that return the same integers, and floats that are equal
            up to rounding.
        *operands: their arguments, pytrees of arrays.
    """
    choice = _choice.get()
    if choice is not None and choice.has_platform:
        return (wide if choice.shape.is_wide else narrow)(*operands)
    return jax.lax.platform_dependent(*operands, cpu=narrow, default=wide)


def compiled(
    function: Callable[..., Any], arrays: tuple[Any, ...], static: tuple[Any, ...] = ()
) -> Any:
    """``function(*arrays, *static)``, compiled, also for callers outside `jax.jit`.

    It is compiled once for each function object, shapes of the arrays, static arguments and shape
    of work. Static arguments are hashable.
    """
    return _compiled(function, arrays, static, current())


@partial(jax.jit, static_argnames=("function", "static", "shape"))
def _compiled(function: Callable, arrays: tuple, static: tuple, shape: WorkShape):
    del shape  # part of the compilation key: it is read while the program is traced
    return function(*arrays, *static)
