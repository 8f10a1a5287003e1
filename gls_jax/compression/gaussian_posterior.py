"""The source given message, side information and clocks: an estimate that does not trust a winner (ours).

A candidate that the encoder chose has won its race. Given its first clock `E` (:func:`gls_jax.races.first_clocks`)
and the source `a`, candidate `i` of weight ``w_i(a)`` is ahead of `N` others of mean weight 1 with chance

    P(Y = i | a, E_i) = exp(-N E_i / w_i(a)),

so the source's posterior is ``p(a | t)`` times the sum of these over the members of the bin. Other members' clocks and
the realised mean of the weights are averaged out: exact for large `N` and `L`. A decoder that believes in no single
candidate is never much worse than silence, and it needs no stream of its own.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gls_jax import races
from gls_jax.compression import dense
from gls_jax.compression.code import Density, ListCode
from gls_jax.compression.gaussian import GaussianSource
from gls_jax.compression.groups import in_groups, over_lanes

__all__ = ["mean"]

# Distances of the source from a candidate, in standard deviations of the target: the integrand is smooth and gone at 6.
_DISTANCES = np.linspace(-6, 6, 33, dtype=np.float32)


def mean(
    code: ListCode, law: GaussianSource, keys: Key[Array, " n"], message, side_information
) -> Float[np.ndarray, " n"]:
    """``E[A | message, side information, clocks]`` of each symbol; time of order `N`.

    Args:
        code: of dense search.
        law: of the source.
        keys: one a symbol.
        message: `i32[n]`.
        side_information: `f32[n]`, any one decoder's.
    """
    side = np.asarray(side_information, np.float32)
    run = partial(_means, code=code, law=law)
    return in_groups(run, (), (keys, np.asarray(message, np.int32), side))


@partial(jax.jit, static_argnames=("code", "law"))
def _means(_, arrays, count, *, code: ListCode, law: GaussianSource):
    return over_lanes(partial(_mean, code, law), arrays, count)


def _mean(code: ListCode, law: GaussianSource, key, message, side) -> Float[Array, ""]:
    known = 1 / (1 + law.side_variance)
    spread = known * law.side_variance  # var(A | T)
    highest = math.log(law.scale / math.sqrt(law.target_variance))  # of log w at candidate 0, source 0

    def add(carry, items, candidates, belongs):
        largest, total, weighted = carry
        candidate = candidates[:, :1]
        source = law.scale * candidate + math.sqrt(law.target_variance) * _DISTANCES
        log_weight = highest - _DISTANCES**2 / 2 + candidate**2 / 2
        prior = -((source - known * side) ** 2) / (2 * spread)
        wins = -code.num_candidates * jnp.exp(-log_weight) * races.first_clocks(key, items)[:, None]
        log_posterior = prior + wins + belongs[:, None]
        now = jnp.maximum(largest, jnp.max(log_posterior))
        shift = jnp.where(jnp.isfinite(now), now, 0)
        posterior, before = jnp.exp(log_posterior - shift), jnp.exp(largest - shift)
        return now, total * before + jnp.sum(posterior), weighted * before + jnp.sum(posterior * source)

    start = (jnp.full((), -jnp.inf, jnp.float32), *jnp.zeros(2, jnp.float32))
    _, total, weighted = dense.fold(code, key, message, _ALL_ALIKE, (), (), add, start)
    return jnp.where(total > 0, weighted / total, known * side)


_ALL_ALIKE = Density(lambda shared, row, candidates: jnp.zeros(candidates.shape[0], jnp.float32))
