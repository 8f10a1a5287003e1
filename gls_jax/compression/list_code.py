"""`ListCode`: what a list code is, and how encoder and decoders pick a candidate.

Source: Rowan, Phan, Khisti 2025 (arXiv 2506.05632), lossy compression with side information.

All parties share, for every symbol, `N` candidates ``U_i ~ p_W``, a bin ``l_i`` for each of them
(uniform on ``0..L-1``), and exponential noise ``S[k, i]`` with one stream `k` per decoder. The
encoder sees the source `a`, weights each candidate by ``w_i = p_{W|A}(U_i | a) / p_W(U_i)`` and
picks ``Y = argmin_i min_k S[k, i] / w_i``. It sends the bin ``l_Y``, which takes ``log2 L`` bits.
Decoder `k` sees its side information `t`, weights by ``v_i = p_{W|T}(U_i | t) / p_W(U_i)`` and
picks ``argmin_i S[k, i] / v_i`` among the candidates of that bin. In the paper's baseline all
decoders share one stream.

Scaling all weights by a constant does not change the choice. So weights need not be normalised, and
candidates can be generated in blocks and discarded. Two searches do that. The chosen candidates
have the same distribution, but the searches draw different noise, so both sides must use the same
one:

* `dense` (:mod:`gls_jax.compression.dense_search`) visits every candidate.
* `ordered` (:mod:`gls_jax.compression.ordered_search`, ours) visits candidates in the order of
  their noise and stops when no later one can win. It needs an upper bound on the weights.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gls_jax import checks

__all__ = ["MAX_SIZE", "SCHEMES", "SEARCHES", "ListCode", "smallest_score"]

SCHEMES = ("gls", "baseline")
SEARCHES = ("ordered", "dense")
MAX_SIZE = 2**30


@dataclasses.dataclass(frozen=True)
class ListCode:
    """The parameters on which encoder and decoders must agree, in addition to the key.

    Attributes:
        num_decoders: `K`.
        num_candidates: `N`, at most 2^30.
        num_bins: `L`, at most `N`; a message is the number of a bin.
        dimension: `D` of a candidate.
        scheme: `gls`, or `baseline`: all decoders share one stream of noise.
        search: `ordered` or `dense`.

    >>> from gls_jax.compression import ListCode
    >>> ListCode(num_decoders=2, num_candidates=4, num_bins=8)
    Traceback (most recent call last):
    ...
    ValueError: num_bins: expected at most num_candidates (4), got 8
    """

    num_decoders: int
    num_candidates: int
    num_bins: int
    dimension: int = 1
    scheme: str = "gls"
    search: str = "ordered"

    def __post_init__(self) -> None:
        # NumPy's integers become Python's: a code is a static argument of `jit` and is written
        # to JSON.
        for name in ("num_decoders", "num_candidates", "num_bins", "dimension"):
            object.__setattr__(self, name, checks.count(getattr(self, name), name))
        for name in ("num_candidates", "num_decoders"):
            if getattr(self, name) > MAX_SIZE:
                raise ValueError(f"{name}: expected at most 2^30, got {getattr(self, name)}")
        if self.num_bins > self.num_candidates:
            raise ValueError(
                f"num_bins: expected at most num_candidates ({self.num_candidates}), "
                f"got {self.num_bins}"
            )
        checks.one_of(self.scheme, SCHEMES, "scheme")
        checks.one_of(self.search, SEARCHES, "search")

    @property
    def num_streams(self) -> int:
        """Independent streams of noise: one per decoder, or one for all of them."""
        return self.num_decoders if self.scheme == "gls" else 1

    def stream(self, decoder: int) -> int:
        """The stream that a decoder uses; `ValueError` if there is no such decoder."""
        # The baseline's decoders are counted too, although they all use stream 0.
        checks.index(decoder, "decoder", last=self.num_decoders - 1)
        return decoder if self.scheme == "gls" else 0


def smallest_score(
    scores: Float[Array, " B"], indices: Int[Array, " B"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The smallest score and the index of its candidate, the smallest index of a tie.

    The index is -1 if no score is finite; NaN counts as infinite.
    """
    # A weight that is NaN must not win, and min would return NaN.
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    smallest = jnp.min(scores)
    largest_index = jnp.iinfo(jnp.int32).max
    index = jnp.min(jnp.where(scores == smallest, indices, largest_index))
    return smallest, jnp.where(smallest < jnp.inf, index, -1)
