"""Distributions of counts that the exact formulas share: binomial, Poisson, Poisson-binomial.

Also the shape of an emitted-token kernel `[J, J']`, see
:class:`gls_jax.schemes.protocols.EmittedTokenKernel`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = [
    "KERNEL_STEP",
    "LEAST_EMITTED",
    "binomial_counts",
    "one_more",
    "poisson_cdf",
    "single_draft_kernel",
    "with_empty_row",
]

LEAST_EMITTED = np.float32(np.log(1e-30))
"""Least log-probability of an emitted token.

A token can stand in the text and be impossible under the distribution read again: at the edge of
top-k, or in greedy decoding, the distribution that it was sampled from differed in the last bit.
"""

KERNEL_STEP = 0.5  # in log theta; the kernels agree with finer steps to 1e-6


def binomial_counts(count: int, chance) -> Float[Array, "J J *n"]:
    """Laws of the number of successes in 0, 1, ... `count` trials."""
    law = jnp.zeros((count + 1, *jnp.shape(chance)), chance.dtype).at[0].set(1)
    laws = [law]
    for _ in range(count):
        laws.append(laws[-1] * (1 - chance) + one_more(laws[-1]) * chance)
    return jnp.stack(laws)


def one_more(law):
    """One success more, along the first axis."""
    return jnp.concatenate([jnp.zeros_like(law[:1]), law[:-1]])


def poisson_cdf(mean, most: int):
    """`P(count <= 0), ..., P(count <= most)` along a new first axis."""
    counts = jnp.arange(most + 1, dtype=mean.dtype).reshape(-1, *[1] * mean.ndim)
    log_mean = jnp.log(jnp.maximum(mean, 1e-30))
    return jnp.cumsum(jnp.exp(counts * log_mean - mean - jax.lax.lgamma(counts + 1)), axis=0)


def single_draft_kernel(chance) -> Float[Array, "J J"]:
    return jnp.stack([jnp.array([1.0, 0.0], chance.dtype), jnp.stack([1 - chance, chance])])


def with_empty_row(rows) -> Float[Array, "J J"]:
    """Rows J = 1..K below the one of a round that has ended."""
    rows = list(rows)
    return jnp.stack([jnp.zeros_like(rows[0]).at[0].set(1), *rows])
