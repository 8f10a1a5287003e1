"""Distributions of counts that the exact formulas share: binomial, Poisson, Poisson-binomial.

A distribution of a count lies along the first axis: entry `j` is the probability of the count `j`.

The module also has the common parts of the emitted-token kernels `[J, J']`, see
:class:`gls_jax.schemes.function_types.EmittedTokenKernel`. They are derived in one of two ways,
for an emitted token `y`:

* Shared noise. Given that `y` arrives first at time ``theta``, every other exponential starts anew
  after ``theta q_i``: exponential variables have no memory. So drafts in different streams are
  independent given ``theta``, which is integrated over.
* Ratio tests. A kernel is a polynomial in `z`, whose power counts drafts that equal `y`: a draft
  that was not tested multiplies by ``1 - p_y + p_y z``, the accepted one by `z`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = [
    "KERNEL_STEP",
    "LEAST_EMITTED",
    "add_bernoulli",
    "add_bernoulli_to_arrays",
    "binomial_counts",
    "one_more",
    "poisson_cdf",
    "poisson_counts",
    "single_draft_kernel",
    "with_empty_row",
]

LEAST_EMITTED = np.float32(np.log(1e-30))
"""Least log-probability of an emitted token.

A text can contain a token that is impossible under its recomputed distribution, if the distribution
it was sampled from differed in the last bit: at the edge of top-k, or in greedy decoding.
"""

# Step in log(theta) of the quadrature in a kernel; the kernels agree with finer steps to 1e-6.
KERNEL_STEP = 0.5


def add_bernoulli(counts: Array, probability: Array) -> Float[Array, "J ..."]:
    """Distribution of a count after one more independent Bernoulli variable.

    Repeated with other probabilities, this is the Poisson-binomial recursion.

    Args:
        counts: distribution of the count so far, `f[J, ...]`; counts of `J` and above are cut off.
        probability: that the variable is 1, `f[...]`.
    """
    return counts * (1 - probability) + one_more(counts) * probability


def add_bernoulli_to_arrays(counts: Sequence[Array], probability: Array) -> tuple[Array, ...]:
    """:func:`add_bernoulli` of a distribution in separate arrays, one for each count.

    XLA fuses many of these into one kernel. With all counts in one array each addition is a kernel
    of its own.

    Args:
        counts: probabilities of the counts `0, ..., J - 1`, `J` arrays `f[...]`.
        probability: that the variable is 1, `f[...]`.
    """
    rest = 1 - probability
    first = counts[0] * rest
    others = [count * rest + lower * probability for lower, count in itertools.pairwise(counts)]
    return first, *others


def one_more(counts: Array) -> Float[Array, "J ..."]:
    """Distribution of the count plus one; the last entry is cut off."""
    # A zero moves in at count 0.
    padding = [(0, 0)] * counts.ndim
    padding[0] = (1, 0)
    return jnp.pad(counts[:-1], padding)


def binomial_counts(num_trials: int, probability: Array) -> Float[Array, "J J *n"]:
    """Distributions of the number of successes in 0, 1, ..., `num_trials` trials, one per row."""
    # Without trials the count is 0.
    counts = jnp.zeros((num_trials + 1, *probability.shape), probability.dtype)
    rows = [counts.at[0].set(1)]
    for _ in range(num_trials):
        rows.append(add_bernoulli(rows[-1], probability))
    return jnp.stack(rows)


def poisson_counts(mean: Array, largest: int) -> Float[Array, "J ..."]:
    """``P(count = 0), ..., P(count = largest)`` of Poisson variables with the given means."""
    counts = jnp.arange(largest + 1, dtype=mean.dtype).reshape(-1, *[1] * mean.ndim)
    # The logarithm of a mean of 0 would make gradients NaN, also where its value is not used.
    is_positive = mean > 0
    mean = jnp.where(is_positive, mean, 1)
    probs = jnp.exp(counts * jnp.log(mean) - mean - jax.lax.lgamma(counts + 1))
    return jnp.where(is_positive, probs, (counts == 0).astype(probs.dtype))


def poisson_cdf(mean: Array, largest: int) -> Float[Array, "J ..."]:
    """``P(count <= 0), ..., P(count <= largest)`` of Poisson variables with the given means."""
    return jnp.cumsum(poisson_counts(mean, largest), axis=0)


def single_draft_kernel(acceptance: Array) -> Float[Array, "2 2"]:
    """The kernel of a scheme with one draft.

    Args:
        acceptance: probability that the draft is the emitted token, `f[]`.
    """
    without_draft = jnp.array([1.0, 0.0], acceptance.dtype)
    with_draft = jnp.stack([1 - acceptance, acceptance])
    return jnp.stack([without_draft, with_draft])


def with_empty_row(rows: Iterable[Array]) -> Float[Array, "J J"]:
    """The kernel of the rows for 1, ..., K active drafts: row 0, no active draft, goes first."""
    first_row, *other_rows = rows
    empty_row = jnp.zeros_like(first_row).at[0].set(1)
    return jnp.stack([empty_row, first_row, *other_rows])
