"""The definition of a list code on arrays: one symbol, any weights, and the bound of its lemma.

The searches of this package choose the same candidates without holding these arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gls_jax import checks
from gls_jax.compression.list_code import smallest_score

__all__ = ["ListMatch", "match"]


class ListMatch(NamedTuple):
    """One symbol through a list code.

    Attributes:
        sent: `i32[]`, index of the encoder's candidate.
        message: `i32[]`, its bin.
        received: `i32[K]`, index of each decoder's candidate.
        matched: `bool[]`, whether some decoder has the encoder's candidate.
        bound: `f32[]`, lower bound on the probability of a match given `sent` and the weights. It
            assumes that each decoder has a separate stream.
    """

    sent: Int[Array, ""]
    message: Int[Array, ""]
    received: Int[Array, " K"]
    matched: Bool[Array, ""]
    bound: Float[Array, ""]


def match(
    noise: Float[Array, "R N"],
    encoder_log_weights: Float[Array, " N"],
    decoder_log_weights: Float[Array, "K N"],
    bins: Int[Array, " N"],
) -> ListMatch:
    """Encoder and all decoders of one symbol.

    The encoder takes ``Y = argmin_i min_k S[k, i] / w_i``. Decoder `k` takes ``argmin S[k, i] /
    v[k, i]`` among the candidates of bin ``l_Y``. Let `q` be the encoder's weights and `p_k`
    decoder `k`'s weights within the bin, each normalised to sum to 1. Then, given ``Y = j``,

        P(match) >= sum_k 1 / ( sum_i max(q_i / q_j, p_ki / p_kj) + (K - 1) / q_j ).

    Source: Rowan, Phan, Khisti 2025 (arXiv 2506.05632), conditional list matching lemma, with one
    distribution per decoder.

    Args:
        noise: Exp(1), `R = K` streams, or `R = 1` for all decoders (the baseline).
        encoder_log_weights: log-weights of the encoder, up to a constant.
        decoder_log_weights: log-weights of each decoder, up to a constant each.
        bins: of the candidates.

    Returns:
        :class:`ListMatch`; an index is -1 if no candidate has a positive weight.

    Raises:
        ValueError: shapes that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import compression, races
    >>> noise = races.exponentials(jax.random.key(0), 2, 4)
    >>> log_weights, bins = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4])), jnp.array([0, 1, 0, 1])
    >>> result = compression.match(noise, log_weights, jnp.zeros((2, 4)), bins)
    >>> bool((bins[result.received] == result.message).all()), bool(0 < result.bound <= 1)
    (True, True)
    """
    noise = checks.floats(noise, "noise")
    decoder_log_weights = checks.floats(decoder_log_weights, "decoder_log_weights")
    encoder_log_weights = checks.distribution(encoder_log_weights, "encoder_log_weights")
    bins = checks.integers(bins, "bins", "[N]")
    _check_shapes(noise, encoder_log_weights, decoder_log_weights, bins)
    num_decoders, num_candidates = decoder_log_weights.shape
    indices = jnp.arange(num_candidates, dtype=jnp.int32)

    def race(stream, log_weights):
        return smallest_score(jnp.log(stream) - log_weights, indices)[1]

    # The encoder looks at the first arrival over all streams, decoders stay in the encoder's bin.
    sent = race(jnp.min(noise, axis=0), encoder_log_weights)
    inside = jnp.where(bins == bins[sent], decoder_log_weights, -jnp.inf)
    received = jax.vmap(race)(jnp.broadcast_to(noise, decoder_log_weights.shape), inside)

    # The bound in terms of ratios to the encoder's candidate. A decoder that gives this candidate
    # no weight has infinite ratios and adds nothing.
    encoder_ratios = jnp.exp(encoder_log_weights - encoder_log_weights[sent])
    log_weight_of_sent = inside[:, sent, None]
    is_possible = log_weight_of_sent > -jnp.inf
    log_ratios = inside - jnp.where(is_possible, log_weight_of_sent, 0)
    decoder_ratios = jnp.where(is_possible, jnp.exp(log_ratios), jnp.inf)
    largest_ratios = jnp.sum(jnp.maximum(encoder_ratios, decoder_ratios), axis=-1)
    bound = jnp.sum(1 / (largest_ratios + (num_decoders - 1) * jnp.sum(encoder_ratios)))
    return ListMatch(
        sent=sent,
        message=bins[sent],
        received=received,
        matched=jnp.any((received == sent) & (sent >= 0)),
        bound=bound,
    )


def _check_shapes(noise, encoder_log_weights, decoder_log_weights, bins) -> None:
    num_candidates = encoder_log_weights.shape[0]
    is_matrix = noise.ndim == decoder_log_weights.ndim == 2
    if not is_matrix or noise.shape[0] not in (1, decoder_log_weights.shape[0]):
        raise ValueError(
            "noise and decoder_log_weights: expected [K, N] each, or one stream of noise, "
            f"got {noise.shape} and {decoder_log_weights.shape}"
        )
    if {noise.shape[1], decoder_log_weights.shape[1], *bins.shape} != {num_candidates}:
        raise ValueError(
            "noise, decoder_log_weights, bins: "
            f"expected {num_candidates} candidates as in encoder_log_weights, "
            f"got shapes {noise.shape}, {decoder_log_weights.shape}, {bins.shape}"
        )
