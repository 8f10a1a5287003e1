"""A list code on arrays: the definition, for one symbol and any weights, with what its lemma
promises.

The searches of this room compute the same thing without holding the arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gls_jax import checks
from gls_jax.compression.code import leader

__all__ = ["ListMatch", "match"]


class ListMatch(NamedTuple):
    """One symbol through a list code.

    Attributes:
        sent: `i32[]`, the encoder's index.
        message: `i32[]`, its bin.
        received: `i32[K]`, every decoder's index.
        matched: `bool[]`, whether one of them is the encoder's.
        bound: `f32[]`, conditional list matching lemma: a match has at least this chance given
            `sent` and the weights, where every decoder has a stream of its own.
    """

    sent: Int[Array, ""]
    message: Int[Array, ""]
    received: Int[Array, " K"]
    matched: Bool[Array, ""]
    bound: Float[Array, ""]


def match(
    clocks: Float[Array, "R N"],
    log_weights: Float[Array, " N"],
    decoders: Float[Array, "K N"],
    bins: Int[Array, " N"],
) -> ListMatch:
    """Encoder and all decoders of one symbol.

    The encoder takes ``Y = argmin_i min_k S[k, i] / w_i``, decoder `k` takes ``argmin S[k, i] /
    v[k, i]`` among the items of bin ``l_Y``. Given ``Y = j``, with ``q`` and ``p_k`` the weights
    made probabilities (`p_k` within the bin),

        P(match) >= sum_k 1 / ( sum_i max(q_i / q_j, p_ki / p_kj) + (K - 1) / q_j ).

    Rowan, Phan, Khisti 2025 (arXiv 2506.05632), conditional list matching lemma, one law a decoder.

    Args:
        clocks: Exp(1), `R = K` streams, or one for all decoders (the baseline).
        log_weights: of the encoder, up to a constant.
        decoders: log-weights of each decoder, up to a constant each.
        bins: of the items.

    Returns:
        :class:`ListMatch`; an index is -1 where no item has a weight.

    Raises:
        ValueError: shapes that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import compression, races
    >>> clocks = races.exponentials(jax.random.key(0), 2, 4)
    >>> bins = jnp.array([0, 1, 0, 1])
    >>> found = compression.match(
    ...     clocks, jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4])), jnp.zeros((2, 4)), bins
    ... )
    >>> bool((bins[found.received] == found.message).all()), bool(0 < found.bound <= 1)
    (True, True)
    """
    clocks, decoders = checks.floats(clocks, "clocks"), checks.floats(decoders, "decoders")
    log_weights, bins = (
        checks.distribution(log_weights, "log_weights"),
        checks.integers(bins, "bins", "[N]"),
    )
    size = log_weights.shape[0]
    if clocks.ndim != 2 or decoders.ndim != 2 or clocks.shape[0] not in (1, decoders.shape[0]):
        got = f"{clocks.shape} and {decoders.shape}"
        raise ValueError(
            f"clocks and decoders: expected [K, N] each, or one stream of clocks, got {got}"
        )
    if {clocks.shape[1], decoders.shape[1], *bins.shape} != {size}:
        raise ValueError(
            f"clocks, decoders, bins: expected {size} items as in log_weights, "
            f"got shapes {clocks.shape}, {decoders.shape}, {bins.shape}"
        )
    items = jnp.arange(size, dtype=jnp.int32)
    _, sent = leader(jnp.log(jnp.min(clocks, axis=0)) - log_weights, items)
    inside = bins == bins[sent]
    within = jnp.where(inside, decoders, -jnp.inf)
    streams = jnp.broadcast_to(clocks, decoders.shape)
    received = jax.vmap(lambda clocks, logs: leader(jnp.log(clocks) - logs, items)[1])(
        streams, within
    )
    encoder = jnp.exp(log_weights - log_weights[sent])
    own = within[:, sent, None]
    possible = own > -jnp.inf
    ratios = jnp.where(possible, jnp.exp(within - jnp.where(possible, own, 0)), jnp.inf)
    rivals = jnp.sum(jnp.maximum(encoder, ratios), axis=-1)
    bound = jnp.sum(1 / (rivals + (decoders.shape[0] - 1) * jnp.sum(encoder)))
    return ListMatch(sent, bins[sent], received, jnp.any((received == sent) & (sent >= 0)), bound)
